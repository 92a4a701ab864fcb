"""Celery's own examples, and apps as others have them: of every source, by variables alone."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

HOST = "metal"
WORKER = "celery-celery-1"
PINNED = pathlib.Path(__file__).parents[1] / "celery.txt"
DJANGO = pathlib.Path(__file__).parents[1] / "django"


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """The source archive of Celery, unpacked, in a Git repository of its own."""
    folder = tmp_path_factory.mktemp("celery")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    command = [*pip, "--require-hashes", f"--dest={folder}", f"--requirement={PINNED}"]
    subprocess.run(command, check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    repository = next(path for path in folder.iterdir() if path.is_dir())
    git(repository, "init", "--quiet", "--initial-branch=main")
    commit(repository)
    return repository


def git(repository, *words):
    names = {
        f"GIT_{who}_{what}": "tests@example.com"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    subprocess.run(["git", "-C", repository, *words], env={**os.environ, **names}, check=True)


def head(repository):
    words = ["git", "-C", repository, "rev-parse", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def commit(repository):
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message=as it is")


def call(lab, task, *arguments, worker=WORKER):
    """Send a task from inside a worker, as an operator would, and wait for its answer."""
    celery = ["podman", "exec", worker, "python", "-m", "celery_metal_runtime"]
    task_id = lab.run(HOST, [*celery, "call", task, f"--args={json.dumps(arguments)}"]).strip()
    return lab.run(HOST, [*celery, "result", task_id]).strip()


def images(lab, name):
    shown = lab.run(HOST, "podman images --format '{{.Repository}}:{{.Tag}}'").split()
    return {one for one in shown if one.startswith(f"localhost/celery-metal/{name}:")}


def said(lab, text):
    """How often a worker's tasks have printed that."""
    log = lab.run(HOST, "journalctl --no-pager -o cat -u celery-celery@1.service")
    return log.count(f"MainProcess] {text}") + log.count(f"] {text}\n")


def test_a_django_project_from_a_repository(kit, lab, examples):
    variables = {
        "image_app_source": f"file://{examples}",
        "image_app_revision": "main",
        "image_app_directory": "examples/django",
        # It was written for another broker, and keeps results in a file beside its code.
        "image_app_extra_requirements": ["celery[redis]"],
        "celery_app": "proj.celery:app",
        "celery_worker_result_backend": "redis",
        # Before there is any worker, or what the network of workers needs.
        "deploy_hooks": {"before_workers": ["python manage.py check"]},
    }
    assert "System check identified no issues" in kit.play(**variables).output
    assert call(lab, "demoapp.tasks.add", 2, 3) == "5"
    assert call(lab, "demoapp.tasks.xsum", [1, 2, 3]) == "6"
    before, base = lab.invocation_ids(HOST, "celery*"), images(lab, "app_base")
    assert kit.play(**variables).changed == {HOST: 0}
    assert lab.invocation_ids(HOST, "celery*") == before
    # Another commit of the code is on its way at once: what it requires stays as it is.
    tasks = examples / "examples" / "django" / "demoapp" / "tasks.py"
    tasks.write_text(tasks.read_text().replace("return x * y", "return x * y * 1000"))
    assert kit.play(**variables).changed == {HOST: 0}, "what is not committed is not deployed"
    # Its database needs a place that is kept, and tables before a worker of that commit runs.
    lab.run(HOST, "mkdir /srv/django; mount -t tmpfs -o uid=999,gid=999 tmpfs /srv/django")
    settings = examples / "examples" / "django" / "proj" / "settings.py"
    settings.write_text(settings.read_text().replace("join(BASE_DIR, 'db.", "join('/data', 'db."))
    variables["celery_queues"] = [{"name": "celery", "volumes": ["/srv/django:/data:idmap"]}]
    variables["deploy_hooks"] = {"before_workers": ["python manage.py migrate --no-input"]}
    first = head(examples)
    commit(examples)
    assert "Applying demoapp.0001_initial... OK" in kit.play(**variables).output
    assert call(lab, "demoapp.tasks.mul", 6, 7) == "42000"
    assert call(lab, "demoapp.tasks.count_widgets") == "0"
    code = (
        "from demoapp.models import Widget; from demoapp.tasks import count_widgets; "
        "Widget.objects.create(name='a'); print('COUNTED', count_widgets.delay().get(timeout=60))"
    )
    shell = ["python", "manage.py", "shell", "-c", code]
    assert "COUNTED 1" in kit.play(playbook="playbooks/run.yml", run_command=shell).output
    assert images(lab, "app_base") == base
    listed = kit.play(playbook="playbooks/rollback.yml", **variables).said
    for one in (first, head(examples)):
        assert f"UTC, commit {one[:12]})" in listed


def test_greenlets_with_requirements_that_only_variables_name(kit, lab, examples):
    kit.play(
        image_app_source=str(examples / "examples" / "next-steps"),
        image_app_extra_requirements=["celery[redis]", "gevent"],
        celery_app="proj.celery:app",
        celery_worker_result_backend="redis",
        celery_queues=[{"name": "celery", "pool": "gevent", "workload": "io"}],
    )
    assert call(lab, "proj.tasks.mul", 6, 7) == "42"
    status = lab.show(HOST, "celery-celery@1.service", "StatusText")
    assert "greenlets" in status
    log = lab.run(HOST, "journalctl --no-pager -o cat -u celery-celery@1.service -I")
    assert "Traceback" not in log


def test_a_schedule(kit, lab, examples):
    kit.play(
        image_app_source=str(examples),
        image_app_directory="examples/periodic-tasks",
        image_app_extra_requirements=["celery[redis]"],
        celery_app="myapp:app",
        celery_beat=True,
    )
    assert "holds the lock" in lab.show(HOST, "celery-beat.service", "StatusText")
    lab.wait_for(
        lambda: said(lab, "hello") >= 2,
        40,
        "the task of the schedule, twice",
        host=HOST,
        unit="celery-beat.service",
    )


ROWS = """
import sqlite3, sys
rows = sqlite3.connect("/srv/shop/db.sqlite3", timeout=20).execute(sys.argv[1]).fetchone()
print(*rows)
"""


def rows(lab, query):
    """What the database of the Django project answers."""
    return lab.run(HOST, ["python3", "-c", ROWS, query]).strip()


def test_a_django_project_with_its_schedule_and_results_in_the_database(kit, lab):
    lab.run(HOST, "mkdir -p /srv/shop; mount -t tmpfs -o uid=999,gid=999 tmpfs /srv/shop")
    volumes = ["/srv/shop:/data:idmap"]
    played = kit.play(
        image_app_source=str(DJANGO),
        celery_app="config.celery_app:app",
        celery_queues=[{"name": "celery", "volumes": volumes}],
        celery_worker_secrets={
            "DATABASE_URL": "sqlite:////data/db.sqlite3",
            "DJANGO_SECRET_KEY": "of the test",
        },
        celery_worker_secrets_exported=["DATABASE_URL", "DJANGO_SECRET_KEY"],
        celery_worker_broker_variables=["CELERY_BROKER_URL"],
        deploy_hooks={"before_workers": ["python manage.py migrate --no-input"]},
        celery_beat=True,
        celery_beat_volumes=volumes,
    )
    # Neither Beat nor a worker starts without these tables.
    assert "Applying django_celery_beat.0001_initial... OK" in played.output
    assert "Applying django_celery_results.0001_initial... OK" in played.output
    sent = "select total_run_count from django_celery_beat_periodictask where name = 'count'"
    done = (
        "select count(*) from django_celery_results_taskresult where status = 'SUCCESS' "
        "and periodic_task_name = 'count' and result = '0'"
    )
    for query in (sent, done):
        lab.wait_for(
            lambda query=query: int(rows(lab, query)) >= 2,
            40,
            "the entry of the schedule, twice",
            host=HOST,
            unit="celery-beat.service",
        )
    code = (
        "from django.contrib.auth.models import User; from shop.tasks import count_users; "
        "User.objects.create(username='a'); print('COUNTED', count_users.delay().get(timeout=60))"
    )
    shell = ["python", "manage.py", "shell", "-c", code]
    assert "COUNTED 1" in kit.play(playbook="playbooks/run.yml", run_command=shell).output


CODE = """
from importlib.metadata import version
from celery import Celery
app = Celery("shop", backend="redis://")
@app.task(name="shop.version")
def own_version():
    return version("shop")
"""


@pytest.fixture
def wheel(tmp_path):
    """A package with an app in it, as 'uv build' or 'python -m build' make them."""
    path = tmp_path / "shop-1.0-py3-none-any.whl"
    info = "shop-1.0.dist-info"
    files = {
        "shop/__init__.py": CODE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n"
        "Requires-Dist: celery[redis]==5.7.0\nRequires-Dist: six; extra == 'more'\n"
        "Provides-Extra: more\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        lines = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        archive.writestr(f"{info}/RECORD", lines)
    return path


def test_a_wheel_with_what_the_distribution_and_the_build_add(kit, lab, wheel):
    kit.play(
        image_app_source=str(wheel),
        image_app_extras=["more"],
        image_app_debian_packages=["hello"],
        image_app_python="3.13",
        image_build_environment={"PIP_PROGRESS_BAR": "off", "TOKEN": "hush-hush '$HOME'"},
        celery_app="shop:app",
    )
    assert call(lab, "shop.version") == "1.0"
    assert lab.run(HOST, ["podman", "exec", WORKER, "hello"]).strip() == "Hello, world!"
    lab.run(HOST, ["podman", "exec", WORKER, "python", "-c", "import six"])
    # What the build was told is in none of its images.
    for image in images(lab, "app") | images(lab, "app_base"):
        assert "hush" not in lab.run(HOST, f"podman history --no-trunc {image}")
        assert "hush" not in lab.run(HOST, f"podman inspect {image}")


@pytest.fixture
def sdist(tmp_path):
    """The same as a source archive, of a later version."""
    path = tmp_path / "shop-1.1.tar.gz"
    project = (
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "shop"\nversion = "1.1"\ndependencies = ["celery[redis]==5.7.0"]\n'
    )
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: shop\nVersion: 1.1\n",
        "pyproject.toml": project,
        # As libpq-dev's pg_config, which is written in Perl.
        "setup.py": "import subprocess, setuptools\n"
        "subprocess.run(['perl', '-e', 'use warnings'], check=True)\nsetuptools.setup()\n",
        "shop/__init__.py": CODE,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"shop-1.1/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def test_a_source_archive_and_a_requirement_that_is_compiled(kit, lab, sdist):
    kit.play(
        image_app_source=str(sdist),
        image_app_build_packages=["gcc", "libc6-dev", "python3-dev"],
        image_app_extra_requirements=["markupsafe"],
        image_build_environment={"PIP_NO_BINARY": "markupsafe"},
        celery_app="shop:app",
    )
    assert call(lab, "shop.version") == "1.1"
    compiled = "import markupsafe._speedups as it; print(it.__file__)"
    found = lab.run(HOST, ["podman", "exec", WORKER, "python", "-c", compiled])
    assert found.strip().endswith(".so")
    # Compilers are there only for the build.
    assert not lab.succeeds(HOST, f"podman exec {WORKER} sh -c 'command -v gcc'")


LOCKED = """
[project]
name = "shop"
version = "1"
requires-python = ">=3.11"
dependencies = ["celery==5.4.0", "kombu==5.4.2"]
[project.optional-dependencies]
broker = ["redis==5.0.1"]
[dependency-groups]
dev = ["six"]
[tool.uv]
override-dependencies = ["vine==5.0.0"]
"""
# As a Django project's: Celery before 5.7 takes what has the prefix first.
SETTINGS = """
from celery import Celery
class settings:
    CELERY_BROKER_URL = CELERY_RESULT_BACKEND = "redis://127.0.0.1:6379/0"
    CELERY_TASK_DEFAULT_QUEUE = "default"
    CELERY_TASK_CREATE_MISSING_QUEUES = False
app = Celery("shop")
app.config_from_object("shop:settings", namespace="CELERY")
@app.task(name="shop.add")
def add(x, y):
    return x + y
"""


def test_what_uv_has_locked_with_an_old_celery_and_settings_with_a_prefix(kit, lab, tmp_path):
    (tmp_path / "pyproject.toml").write_text(LOCKED)
    (tmp_path / "shop.py").write_text(SETTINGS)
    subprocess.run([sys.executable, "-m", "uv", "lock", "--quiet"], cwd=tmp_path, check=True)
    variables = {
        "image_app_source": str(tmp_path),
        "image_app_extras": ["broker"],
        "image_app_debian_release": "bookworm",
        "celery_app": "shop:app",
    }
    said = kit.play(fails=True, **variables).output
    assert "the app's task_queues has no celery, only default: name these in celery_queues" in said
    kit.play(celery_queues=[{"name": "default"}], **variables)
    assert call(lab, "shop.add", 2, 3, worker="celery-default-1") == "5"
    versions = lab.run(HOST, "podman exec celery-default-1 python -m celery_metal_runtime versions")
    assert versions.startswith("celery 5.4.0, kombu 5.4.2, redis 5.0.1, Python 3.11.")
    release = lab.run(HOST, "podman exec celery-default-1 cat /etc/debian_version")
    assert release.startswith("12.")
    assert not lab.succeeds(HOST, "podman exec celery-default-1 python -c 'import six'")
    # kombu 5.4.2 itself requires another.
    installed = "from importlib.metadata import version; print(version('vine'))"
    line = ["podman", "exec", "celery-default-1", "python", "-c", installed]
    assert lab.run(HOST, line).strip() == "5.0.0"


def test_what_cannot_be_had_is_told_and_leaves_what_runs(kit, lab, wheel, tmp_path):
    before = lab.invocation_ids(HOST, "celery*")
    played = kit.play(fails=True, image_app_source=str(wheel), image_app_python="3.7")
    said = played.said
    assert f"{HOST} could not build the images: the reason is above" in said
    assert "python3.7" in said
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "requirements.txt").write_text("celery==5.7.0\n")
    played = kit.play(fails=True, image_app_source=str(tmp_path / "app"), celery_app="shop:app")
    assert "celery[redis] to the app's requirements or image_app_extra_requirements" in played.said
    assert lab.invocation_ids(HOST, "celery*") == before
