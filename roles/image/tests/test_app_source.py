"""Apps from directories, Git repositories made here, and packages, with what they require."""

import base64
import contextlib
import gzip
import http.server
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import app_source
import pytest

PINNED = "celery==5.7.0 --hash=sha256:0\n"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def project(tmp_path):
    """A directory with an app in it, and nothing of what it requires."""
    top = tmp_path / "project"
    (top / "shop").mkdir(parents=True)
    (top / "shop" / "__init__.py").write_text("version = 1\n")
    return top


def find(source, cache, **options):
    return app_source.find_app(str(source), str(cache), **options)


def requirements(found):
    """What pip is told, by its file's path."""
    top = Path(found["requirements"])
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*.*")}


def refused(source, cache, **options):
    said = app_source.find_app_or_problem(str(source), str(cache), **options)
    assert list(said) == ["problem"], said
    first, last = said["problem"].splitlines()
    assert first.startswith("image_app_source: ")
    assert last == "Nothing was changed on any host."
    return first


# Directories and their requirements


def test_a_requirements_file_is_taken_as_it_is(project, cache):
    (project / "requirements.txt").write_text(PINNED)
    found = find(project, cache)
    assert found["code"] == str(project)
    assert found["package"] == ""
    assert requirements(found) == {
        "all.txt": "-r tree/requirements.txt\n",
        "extra.txt": "",
        "tree/requirements.txt": PINNED,
    }
    assert find(project, cache) == found
    (project / "requirements.txt").write_text(PINNED * 2)
    assert find(project, cache)["requirements"] != found["requirements"]


def test_files_that_a_requirements_file_includes_come_along(project, cache):
    (project / "requirements").mkdir()
    (project / "requirements" / "worker.txt").write_text("-r base.txt\n-c ../pins.txt\ngevent\n")
    (project / "requirements" / "base.txt").write_text("--requirement=base.txt\ncelery\n")
    (project / "pins.txt").write_text("celery==5.7.0\n")
    found = find(project, cache, requirements="requirements/worker.txt")
    assert set(requirements(found)) == {
        "all.txt",
        "extra.txt",
        "tree/pins.txt",
        "tree/requirements/base.txt",
        "tree/requirements/worker.txt",
    }
    assert requirements(found)["all.txt"] == "-r tree/requirements/worker.txt\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-r ../../etc/passwd", "includes ../../etc/passwd, which is no file in"),
        ("-c /etc/passwd", "includes /etc/passwd, which is no file in"),
        ("-r missing.txt", "includes missing.txt, which is no file in"),
        ("-e .", "requirements.txt, line 2, is '-e .': only packages of an index"),
        ("--editable ./lib", "line 2, is '--editable ./lib': only packages"),
        (".[dev]", "line 2, is '.[dev]': only packages"),
        ("./lib/thing", "line 2, is './lib/thing': only packages"),
    ],
)
def test_what_is_no_package_of_an_index_is_refused(project, cache, line, said):
    (project / "requirements.txt").write_text(f"celery\n{line}\n")
    assert said in refused(project, cache)


def test_a_project_file_names_what_it_needs(project, cache):
    (project / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "1"\ndependencies = ["celery[redis]>=5.5"]\n'
        '[project.optional-dependencies]\nsoon = ["gevent"]\n'
    )
    assert requirements(find(project, cache))["tree/requirements.txt"] == "celery[redis]>=5.5\n"
    found = find(project, cache, extras=["soon"], extra_requirements=["pillow==12.0"])
    assert requirements(found)["tree/requirements.txt"] == "celery[redis]>=5.5\ngevent\n"
    assert requirements(found)["extra.txt"] == "pillow==12.0\n"
    said = refused(project, cache, extras=["later"])
    assert "image_app_extras has 'later', which is none of" in said
    assert "it has soon" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.poetry.dependencies]\ncelery = '5'\n", "no [project] dependencies of its own"),
        ("[project]\nname='a'\ndynamic=['dependencies']\n", "no [project] dependencies of its own"),
        ("[project\n", "cannot be read"),
    ],
)
def test_a_project_file_that_does_not_say_it_is_refused(project, cache, text, said):
    (project / "pyproject.toml").write_text(text)
    assert said in refused(project, cache)


def test_a_lock_file_goes_first_and_keeps_its_hashes(project, cache):
    (project / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "1"\nrequires-python = ">=3.12"\n'
        'dependencies = ["celery"]\n[project.optional-dependencies]\nsoon = ["gevent"]\n'
        '[dependency-groups]\ndev = ["pytest"]\n'
    )
    (project / "requirements.txt").write_text("stale\n")
    names = {"celery": "", "gevent": "", "pytest": ""}
    locked = "".join(
        f'[[package]]\nname = "{name}"\nversion = "1.2.3"\n'
        'source = { registry = "https://x.test" }\n'
        f'wheels = [{{ url = "https://x.test/{name}-1.2.3-py3-none-any.whl", '
        f'hash = "sha256:{digit * 64}" }}]\n'
        for digit, name in enumerate(names)
        for digit in [str(digit)]
    )
    (project / "uv.lock").write_text(
        'version = 1\nrevision = 3\nrequires-python = ">=3.12"\n' + locked + "[[package]]\n"
        'name = "shop"\nversion = "1"\nsource = { virtual = "." }\n'
        'dependencies = [{ name = "celery" }]\n'
        '[package.optional-dependencies]\nsoon = [{ name = "gevent" }]\n'
        '[package.dev-dependencies]\ndev = [{ name = "pytest" }]\n'
        '[package.metadata]\nrequires-dist = [{ name = "celery" }, '
        '{ name = "gevent", marker = "extra == \'soon\'" }]\n'
        'provides-extras = ["soon"]\n[package.metadata.requires-dev]\ndev = [{ name = "pytest" }]\n'
    )
    found = requirements(find(project, cache))
    assert found["exact.txt"] == "-r tree/uv.lock\n"
    assert "all.txt" not in found
    assert found["python.txt"] == ">=3.12"
    text = found["tree/uv.lock"]
    assert text.split() == ["celery==1.2.3", "\\", f"--hash=sha256:{'0' * 64}"]
    text = requirements(find(project, cache, extras=["soon"]))["tree/uv.lock"]
    assert f"gevent==1.2.3 \\\n    --hash=sha256:{'1' * 64}" in text
    assert "pytest" not in text
    assert not (project / ".venv").exists()
    (project / "uv.lock").write_text("no lock")
    said = refused(project, cache)
    assert "uv.lock cannot be read: " in said
    assert "Run 'uv lock' there" in said


CONTAINERFILE = Path(__file__).parents[1] / "files" / "base" / "Containerfile"


@pytest.mark.parametrize(
    ("needs", "admitted"),
    [("==3.99.*", False), ("<3", False), (">=3.8", True), ("==3.*", True), ("~=3.8,!=3.9.1", True)],
)
def test_a_build_refuses_a_python_that_the_project_does_not_admit(
    project, cache, tmp_path, needs, admitted
):
    (project / "pyproject.toml").write_text(f'[project]\nname = "a"\nrequires-python = "{needs}"\n')
    (project / "requirements.txt").write_text("celery\n")
    path = tmp_path / "python.txt"
    path.write_text(requirements(find(project, cache))["python.txt"])
    text = CONTAINERFILE.read_text().replace("\\\n", "")
    code = re.search(r'\$PYTHON -c "([^"]*python\.txt[^"]*)"', text)[1]
    command = [sys.executable, "-c", code.replace("/requirements/python.txt", str(path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    has = platform.python_version()
    told = f"ERROR: the app requires Python {needs} (requires-python), and the image has {has}\n"
    assert (done.returncode, done.stderr) == ((0, "") if admitted else (1, told))


def test_a_project_without_requires_python_has_no_such_file(project, cache):
    (project / "requirements.txt").write_text("celery\n")
    assert "python.txt" not in requirements(find(project, cache))


def test_an_app_that_does_not_say_what_it_requires_is_refused(project, cache):
    said = refused(project, cache)
    assert f"{project} has none of uv.lock, requirements.txt, pyproject.toml: name the file" in said
    said = refused(project, cache, requirements="worker.txt")
    assert "image_app_requirements is 'worker.txt', and" in said
    found = find(project, cache, extra_requirements=["celery[redis]", "gevent"])
    assert requirements(found) == {"all.txt": "", "extra.txt": "celery[redis]\ngevent\n"}
    (project / "requirements.txt").write_text("celery\n")
    assert "image_app_extras are for" in refused(project, cache, extras=["soon"])
    assert "and no options" in refused(project, cache, extra_requirements=["--index-url=x"])
    assert "and no options" in refused(project, cache, extra_requirements=["a\n-r b"])


def test_a_directory_in_the_source(project, cache):
    (project / "requirements.txt").write_text("celery\n")
    found = find(project.parent, cache, directory="project")
    assert found["code"] == str(project)
    for directory in ("elsewhere", "..", "/etc"):
        said = refused(project.parent, cache, directory=directory)
        assert f"image_app_directory is {directory!r}, which is no directory in" in said
    assert "is not a directory on the controller, nor a wheel" in refused("/nowhere", cache)


# Git


def git(repository, *words):
    names = {"GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "n@example.com"}
    names |= {"GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "n@example.com"}
    done = subprocess.run(
        ["git", "-C", repository, *words],
        env={**os.environ, **names},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(repository, text):
    (repository / "shop" / "__init__.py").write_text(text)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", text)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(project):
    (project / "requirements.txt").write_text("celery\n")
    git(project, "init", "--quiet", "--initial-branch=main")
    commit(project, "first")
    return project


def code(found):
    return (Path(found["code"]) / "shop" / "__init__.py").read_text()


def test_a_revision_of_a_repository(repository, cache):
    url = f"file://{repository}"
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "v1")
    assert code(find(url, cache)) == "first"
    second = commit(repository, "second")
    git(repository, "checkout", "--quiet", "-b", "next")
    third = commit(repository, "third")
    git(repository, "checkout", "--quiet", "main")
    # What is not committed is not deployed.
    (repository / "shop" / "__init__.py").write_text("draft")
    expected = {"": "second", "main": "second", "next": "third", "v1": "first"}
    expected |= {first: "first", second[:12]: "second", third: "third"}
    for revision, text in expected.items():
        assert code(find(url, cache, revision=revision)) == text, revision
    assert code(find(f"git+{url}", cache)) == "second"
    assert not list(cache.glob("git/*/*/.git"))


def test_the_commit_of_an_app_is_known_where_it_has_one(repository, cache, monkeypatch):
    head = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "-a", "-m", "first", "v1")
    assert find(f"file://{repository}", cache)["revision"] == head
    assert find(repository, cache)["revision"] == head
    (repository / "shop" / "__init__.py").write_text("draft")
    assert find(repository, cache)["revision"] == f"{head}-dirty"
    monkeypatch.setenv("PATH", "/nowhere")
    assert find(repository, cache)["revision"] == ""
    monkeypatch.undo()
    shutil.rmtree(repository / ".git")
    assert find(repository, cache)["revision"] == ""


def test_a_commit_that_is_there_is_not_fetched_again(repository, cache):
    url, first = f"file://{repository}", git(repository, "rev-parse", "HEAD")
    before = find(url, cache, revision=first)
    shutil.rmtree(repository)
    assert find(url, cache, revision=first) == before
    assert "git fetch failed: " in refused(url, cache)


def test_old_checkouts_go(repository, cache):
    url = f"file://{repository}"
    old = Path(find(url, cache)["code"])
    os.utime(old, (1, 1))
    commit(repository, "second")
    new = Path(find(url, cache)["code"])
    assert new.is_dir()
    assert not old.exists()


@pytest.mark.parametrize("revision", ["no-such-branch", "f" * 40, "0123abc"])
def test_a_revision_that_is_not_there_is_refused(repository, cache, revision):
    said = refused(f"file://{repository}", cache, revision=revision)
    assert "Check image_app_source, image_app_revision" in said


@pytest.mark.parametrize(
    "revision", ["--upload-pack=touch /tmp/x", "a b", "a:b", "x~1", "-h", "\n"]
)
def test_what_is_no_revision_is_refused(repository, cache, revision):
    said = refused(f"file://{repository}", cache, revision=revision)
    assert f"image_app_revision is {revision!r}: write the name of a branch" in said


def test_a_revision_without_a_repository_is_refused(project, cache):
    (project / "requirements.txt").write_text("celery\n")
    said = refused(project, cache, revision="main")
    assert "image_app_revision is 'main', but image_app_source" in said


def test_submodules_are_refused(repository, cache, tmp_path):
    shutil.copytree(repository, tmp_path / "lib")
    allow = ["-c", "protocol.file.allow=always"]
    git(repository, *allow, "submodule", "--quiet", "add", str(tmp_path / "lib"), "lib")
    commit(repository, "with lib")
    said = refused(f"file://{repository}", cache)
    assert "has submodules (lib), which are not fetched" in said


def command_lines():
    """Those of all processes, as any user reads them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


class GitServer(http.server.BaseHTTPRequestHandler):
    """Git over HTTP for those with the password; keeps what runs while it is asked."""

    def serve(self):
        self.server.seen += command_lines()
        name = self.server.login
        if self.headers["Authorization"] != f"Basic {base64.b64encode(name.encode()).decode()}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        known = {
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
        }
        sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Content-Encoding"] == "gzip":
            sent = gzip.decompress(sent)
        done = subprocess.run(
            ["git", "http-backend"],
            input=sent,
            env={**os.environ, **known},
            capture_output=True,
            check=True,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = serve  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("written", "login"), [("bot:hush-%41", "bot:hush-A"), ("b%40t:hush-%25s", "b@t:hush-%s")]
)
def test_a_password_in_a_url_opens_a_repository_and_is_in_no_command_line(
    repository, cache, written, login
):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), GitServer) as server:
        server.root, server.login, server.seen = repository.parent, login, []
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            where = f"127.0.0.1:{server.server_port}/{repository.name}"
            found = find(f"http://{written}@{where}", cache)
            assert code(found) == "first"
            said = refused(f"http://{written}x@{where}", cache)
        finally:
            server.shutdown()
            serving.join()
    assert "hush" not in said
    seen = [line for line in server.seen if where in line]
    assert any("remote-http" in line for line in seen)
    # Of all processes of this machine, on which other checks have passwords of theirs.
    passwords = [one.rpartition(":")[2] for one in (written, login)]
    assert [line for line in server.seen if any(one in line for one in passwords)] == []
    kept = [path for path in cache.rglob("*") if path.is_file() and b"hush-" in path.read_bytes()]
    assert kept == []


def test_what_is_no_password_stays_in_a_url():
    for url in ("ssh://git@host/shop", "git@host:shop", "https://host/a@b", "file:///a"):
        assert app_source.login(url, {}) == (url, {})
    _, known = app_source.login("https://bot@host/shop", {"GIT_CONFIG_COUNT": "2"})
    assert known["GIT_CONFIG_COUNT"] == "3"
    assert known["GIT_CONFIG_KEY_2"] == "credential.https://host.username"
    with pytest.raises(app_source.SourceError, match="control character"):
        app_source.login("https://bot:a%0Ahost=b@host/shop", {})


def test_a_password_in_a_url_is_never_shown(cache):
    said = refused("https://bot:hush-hush@localhost:1/shop.git", cache)
    assert "https://localhost:1/shop.git: git fetch failed" in said
    assert "hush" not in said


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("https://host.example/team/shop.git", "git"),
        ("git@host.example:team/shop", "git"),
        ("ssh://git@host.example/shop", "git"),
        ("git+https://host.example/shop@main", "git"),
        ("dist/shop-1.0-py3-none-any.whl", "package"),
        ("~/dist/shop-1.0.tar.gz", "package"),
        ("~/src/shop", ""),
        ("/srv/shop.git", ""),
        ("", ""),
    ],
)
def test_kinds_of_sources(source, kind):
    assert app_source.is_git(source) == (kind == "git")
    assert app_source.is_package(source) == (kind == "package")


# Packages


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "dist" / "shop-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("shop/__init__.py", "")
        archive.writestr("shop-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shop\n")
    return path


@pytest.fixture
def sdist(tmp_path):
    path = tmp_path / "shop-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("shop-1.0/PKG-INFO")
        content = b"Metadata-Version: 2.1\nName: shop\n"
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return path


def test_packages(wheel, sdist, cache, tmp_path):
    for path in (wheel, sdist):
        found = find(path, cache)
        assert found["code"] == ""
        assert found["package"] == str(path)
        assert requirements(found) == {"all.txt": "", "extra.txt": f"/package/{path.name}\n"}
    (tmp_path / "pins.txt").write_text(PINNED)
    found = find(
        wheel,
        cache,
        requirements=str(tmp_path / "pins.txt"),
        extras=["soon", "later"],
        extra_requirements=["gevent"],
    )
    assert requirements(found) == {
        "all.txt": "-r tree/pins.txt\n",
        "tree/pins.txt": PINNED,
        "extra.txt": f"/package/{wheel.name}[soon,later]\ngevent\n",
    }


def test_what_is_no_package_is_refused(wheel, cache, tmp_path):
    for name in ("a-1-py3-none-any.whl", "a-1.zip", "a-1.tar.gz"):
        (tmp_path / name).write_bytes(b"x" * 700)
        assert f"{name} is no Python package: make one with" in refused(tmp_path / name, cache)
    with zipfile.ZipFile(tmp_path / "empty-1.zip", "w"):
        pass
    assert "is no Python package" in refused(tmp_path / "empty-1.zip", cache)
    assert "is no file on the controller" in refused(tmp_path / "b-1.zip", cache)
    assert "image_app_directory is 'shop', and" in refused(wheel, cache, directory="shop")
    said = refused(wheel, cache, requirements="/nowhere.txt")
    assert "image_app_requirements is '/nowhere.txt', which is no file on the controller" in said


def test_importable_without_ansible():
    text = (
        "import sys; sys.modules['ansible'] = None; sys.path.insert(0, sys.argv[1]); "
        "import app_source; assert app_source.is_git('https://a/b')"
    )
    folder = str(Path(app_source.__file__).parent)
    subprocess.run([sys.executable, "-c", text, folder], check=True)
