"""The wheel of the runtime: pip installs it, and it is the same for the same sources."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "wheel.py"


def written(directory: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, TOOL, directory]
    return pathlib.Path(subprocess.check_output(command, text=True).strip())


def test_pip_installs_it_and_its_command_runs(tmp_path: pathlib.Path) -> None:
    wheel = written(tmp_path)
    target = tmp_path / "site"
    # Its dependencies are those of this environment; pip checks the list of files.
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run([sys.executable, *install], check=True)
    environ = {"PYTHONPATH": str(target), "CELERY_METAL_BROKER": "redis://producer@h:1/0"}
    code = (
        "import os, celery, celery_metal_runtime as runtime;"
        "app = celery.Celery('shop', broker='redis://nowhere', set_as_current=False);"
        "print(os.path.dirname(runtime.__path__[0]), app.conf.broker_url)"
    )
    command = [target / "bin" / "celery-metal-run", sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(target), "redis://producer@h:1/0"], done.stderr
    assert {path.name for path in (target / "celery_metal_runtime").glob("*.py")} == {
        path.name for path in (ROOT / "app/runtime/celery_metal_runtime").glob("*.py")
    }


def test_the_same_sources_give_the_same_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = written(tmp_path / "a"), written(tmp_path / "b")
    assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
    assert not [name for name in zipfile.ZipFile(one).namelist() if "pycache" in name]


def test_it_runs_as_the_page_prints_it(tmp_path: pathlib.Path) -> None:
    """From a fresh checkout, which has no directory `dist`."""
    done = subprocess.run([TOOL, "dist"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / done.stdout.strip()).is_file()
    assert done.stdout.startswith("dist/celery_metal_runtime-")


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dist").touch()
    done = subprocess.run([TOOL, "dist"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "dist: File exists" in done.stderr
    assert "Traceback" not in done.stderr
