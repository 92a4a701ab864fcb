"""Names of images by their content, build contexts, and image archives made here."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import image
import pytest

DIGEST = "5" * 64
LAYERS = {"base": ["libc6"], "redis": ["redis-server"]}


@pytest.fixture
def app(tmp_path):
    top = tmp_path / "app"
    (top / "package").mkdir(parents=True)
    (top / "requirements.txt").write_text("celery==5.7.0\n")
    (top / "package" / "__init__.py").write_text("x = 1\n")
    return top


def recipe_of(source, layers=LAYERS, **more):
    return {"sources": {"app": str(source)}, "layers": layers, **more}


def tag(app, layers=LAYERS):
    return image.image_tag(recipe_of(app, layers))


def every(source):
    return {"app": source, "redis": source}


def recipes(app):
    """What the role hands over, each image with something of its own."""
    return {
        "redis": {"sources": {}, "layers": LAYERS},
        "app_base": {"sources": {"requirements": str(app)}, "layers": LAYERS},
        "app": recipe_of(app),
    }


# Tags


def test_the_same_content_has_the_same_tag(app):
    before = tag(app)
    assert before == tag(app)
    assert len(before) == 16
    assert set(before) <= set("0123456789abcdef")
    for path in [app, *app.rglob("*")]:
        os.utime(path, (1, 1))
    (app / "package" / "__init__.py").chmod(0o600)  # who may read it here is not in the image
    assert tag(app) == before


def test_the_place_of_the_sources_is_not_part_of_it(app, tmp_path):
    before = tag(app)
    assert tag(app.rename(tmp_path / "elsewhere")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda app: (app / "package" / "__init__.py").write_text("x = 2\n"),
        lambda app: (app / "package" / "__init__.py").chmod(0o755),
        lambda app: (app / "package" / "__init__.py").rename(app / "package" / "other.py"),
        lambda app: (app / "new.py").write_text(""),
        lambda app: (app / "requirements.txt").unlink(),
    ],
    ids=["content", "mode", "name", "new", "removed"],
)
def test_another_content_has_another_tag(app, change):
    before = tag(app)
    change(app)
    assert tag(app) != before


def test_another_recipe_or_place_in_the_context_has_another_tag(app):
    assert tag(app) != tag(app, LAYERS | {"redis": ["redis-server", "redis-tools"]})
    assert tag(app) == tag(app, dict(reversed(LAYERS.items())))
    assert image.image_tag({"sources": {"runtime": str(app)}, "layers": LAYERS}) != tag(app)


@pytest.mark.parametrize(
    "path",
    [
        ".git/HEAD",
        "package/__pycache__/a.cpython-313.pyc",
        "package/b.pyc",
        ".venv/bin/python",
        "venv/pyvenv.cfg",
        "node_modules/a/index.js",
        ".env",
        "package/.ssh/id_ed25519",
        "tls/server.key",
        "tls/server.pem",
        ".env.production",
        "package/.env.d/secret",
        ".vault_pass.txt",
        ".a.py.swp",
    ],
)
def test_what_is_left_out_changes_nothing(app, path):
    before = tag(app)
    (app / path).parent.mkdir(parents=True, exist_ok=True)
    (app / path).write_text("secret")
    assert tag(app) == before
    assert f"app/{path}" not in image.context_files({"app": str(app)})


def test_what_the_user_leaves_out(app):
    before = tag(app)
    for path in ("data/big.csv", "docs/index.md", "docs/deep/page.md", "package/docs.md"):
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        (app / path).write_text("much")
    recipe = recipe_of(app, exclude=["*.csv", "docs/*", "package/docs.md"])
    assert image.image_tag(recipe) == before
    # What is not the app's stays as it is.
    assert image.context_files({"runtime": str(app)}, ["*"]) != {}


def test_a_link_stays_one_and_leads_nowhere_else(app, tmp_path):
    (app / "package" / "there.py").symlink_to(app / "package" / "__init__.py")
    (app / "linked").symlink_to("package")
    with tarfile.open(fileobj=io.BytesIO(image.context_tar(recipe_of(app)))) as tar:
        links = {entry.name: entry.linkname for entry in tar if entry.issym()}
    assert links == {"app/package/there.py": "__init__.py", "app/linked": "package"}
    (tmp_path / "secret").mkdir()
    for target in (tmp_path / "secret", "/etc/passwd"):
        (app / "out").symlink_to(target)
        with pytest.raises(image.ImageError, match=rf"out is a link to {target}, which is outside"):
            image.context_tar(recipe_of(app))
        (app / "out").unlink()


# Contexts


def test_the_context_is_reproducible(app):
    first = image.context_tar(recipe_of(app))
    for path in app.rglob("*"):
        os.utime(path, (5, 5))
    assert image.context_tar(recipe_of(app)) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getnames() == [
            ".recipe",
            "app",
            "app/package/__init__.py",
            "app/requirements.txt",
        ]
        assert {(entry.mtime, entry.uid, entry.uname) for entry in tar} == {(0, 0, "")}
        assert {entry.mode for entry in tar if entry.isfile()} == {0o644}
        assert json.load(tar.extractfile(".recipe")) == {"layers": LAYERS}


def test_a_context_of_a_file_and_of_nothing(app):
    wheel = app / "requirements.txt"
    recipe = {"sources": {"package": "", "package/shop.whl": str(wheel), "app": ""}}
    with tarfile.open(fileobj=io.BytesIO(image.context_tar(recipe))) as tar:
        assert tar.getnames() == [".recipe", "app", "package", "package/shop.whl"]


def test_the_context_of_several_sources(app, tmp_path):
    recipe = tmp_path / "context"
    recipe.mkdir()
    (recipe / "Containerfile").write_text("FROM scratch\n")
    assert list(image.context_files({"": str(recipe), "app": str(app)})) == [
        "Containerfile",
        "app/package/__init__.py",
        "app/requirements.txt",
    ]


def test_a_source_that_is_no_directory_is_named(app):
    with pytest.raises(image.ImageError, match=r"/nowhere is not a directory on the controller"):
        image.context_files({"app": "/nowhere"})


def test_the_context_is_written_once(app, tmp_path):
    cache = tmp_path / "cache" / "deep"
    path = Path(image.image_context(recipe_of(app), str(cache)))
    assert path.name == f"context-{tag(app)}.tar.gz"
    assert gzip.decompress(path.read_bytes()) == image.context_tar(recipe_of(app))
    os.utime(path, (1, 1))
    assert image.image_context(recipe_of(app), str(cache)) == str(path)
    assert path.stat().st_mtime == 1
    assert list(cache.iterdir()) == [path]


# Archives


def archive(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return str(path)


def oci(images=1):
    manifests = [{"digest": f"sha256:{number:064x}"} for number in range(images)]
    blobs = {
        f"blobs/sha256/{number:064x}": {"config": {"digest": f"sha256:{DIGEST}"}}
        for number in range(images)
    }
    return {"oci-layout": {}, "index.json": {"manifests": manifests}, **blobs}


def docker(images=1, config=f"{DIGEST}.json"):
    return {"manifest.json": [{"Config": config, "RepoTags": None}] * images}


@pytest.mark.parametrize(
    "members",
    [oci(), docker(), docker(config=f"blobs/sha256/{DIGEST}"), {**docker(), **oci()}],
    ids=["oci", "docker", "docker-of-late", "both"],
)
def test_the_image_of_an_archive(tmp_path, members):
    assert image.archive_image_id(archive(tmp_path / "a.tar", members)) == DIGEST


@pytest.mark.parametrize(
    ("members", "text"),
    [
        (oci(2), "holds 2 images; an archive of exactly one is needed"),
        (oci(0), "holds 0 images; an archive of exactly one is needed"),
        (docker(3), "holds 3 images; an archive of exactly one is needed"),
        ({"etc/passwd": b"root"}, "holds 0 images"),
        ({"index.json": b"no JSON"}, "cannot be read as an image archive"),
        ({"index.json": {}}, "cannot be read as an image archive"),
        ({"index.json": oci()["index.json"]}, "cannot be read as an image archive"),
        ({"index.json": [1]}, "cannot be read as an image archive"),
        (docker(config="no digest"), "cannot be read as an image archive"),
    ],
)
def test_an_archive_that_is_no_image(tmp_path, members, text):
    path = archive(tmp_path / "a.tar", members)
    with pytest.raises(image.ImageError) as caught:
        image.archive_image_id(path)
    assert text in str(caught.value)
    assert str(caught.value).startswith(path)


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    for path in (tmp_path / "cut.tar", tmp_path / "missing.tar", tmp_path):
        with pytest.raises(image.ImageError, match="podman save --format oci-archive"):
            image.archive_image_id(str(path))


def test_a_cut_off_archive(tmp_path):
    path = Path(archive(tmp_path / "a.tar", oci() | {"index.json": {"manifests": ["x" * 2000]}}))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(image.ImageError):
        image.archive_image_id(str(path))


# References


@pytest.mark.parametrize(
    "reference",
    [
        "registry.example/app:1.2.3",
        "registry.example:5000/team/app:1",
        f"registry.example/app@sha256:{DIGEST}",
        f"registry.example/app:latest@sha256:{DIGEST}",
    ],
)
def test_references_with_a_version(reference):
    assert image.registry_problem("image_app", reference) == ""


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("", "image_app is empty: name the image"),
        ("app:1", "is no image with its registry"),
        ("registry.example/an app:1", "is no image with its registry"),
        ("registry.example/app", "names no version"),
        ("registry.example/app:", "names no version"),
        ("registry.example/app:latest", "names no version"),
        # The colon of a port is none of a tag.
        ("registry.example:5000/app", "names no version"),
    ],
)
def test_references_without_one(reference, text):
    problem = image.registry_problem("image_app", reference)
    assert problem.startswith("image_app")
    assert text in problem


def test_references_from_a_registry_are_what_the_app_is_put_on(app):
    wanted = {"app": "registry.example/app:1", "redis": "registry.example/redis:8"}
    found = image.image_references(wanted, every("registry"), recipes(app))
    assert found["app_base"] == wanted["app"]
    assert found["redis"] == wanted["redis"]
    assert found["app"].startswith("localhost/celery-metal/app:")
    other = image.image_references(
        wanted | {"app": "registry.example/app:2"}, every("registry"), recipes(app)
    )
    assert other["app"] != found["app"]
    with pytest.raises(image.ImageError) as caught:
        image.image_references({"app": "", "redis": "registry.example/r"}, every("registry"), {})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "image_app",
        "image_redis",
        "Nothing",
    ]


def test_each_image_comes_from_where_it_is_declared(app, tmp_path):
    built = image.image_references({}, every("build"), recipes(app))
    own, path = "registry.example/app:1", archive(tmp_path / "a.tar", oci())
    # Whatever the app is, Redis is the same.
    for source, wanted in (("registry", own), ("archive", path)):
        found = image.image_references(
            {"app": wanted, "redis": ""}, {"app": source, "redis": "build"}, recipes(app)
        )
        assert found["redis"] == built["redis"]
        assert found["app_base"] != built["app_base"]
    # A base of the user's own, and no recipe for another.
    assert (
        image.image_references(
            {"app": own, "redis": ""},
            {"app": "registry", "redis": "build"},
            {name: one for name, one in recipes(app).items() if name != "app_base"},
        )["app_base"]
        == own
    )
    for source, wanted in (("registry", "registry.example/redis:8"), ("archive", path)):
        found = image.image_references(
            {"app": "", "redis": wanted}, {"app": "build", "redis": source}, recipes(app)
        )
        assert {**found, "redis": ""} == {**built, "redis": ""}
        assert found["redis"] != built["redis"]
    # And without a host of Redis.
    found = image.image_references({"app": own}, every("registry"), recipes(app))
    assert set(found) == {"app", "app_base"}


@pytest.mark.parametrize("name", ["app", "redis"])
def test_an_image_that_would_not_be_used_is_refused(app, name):
    variable = {"app": "image_source", "redis": "image_redis_source"}[name]
    with pytest.raises(image.ImageError) as caught:
        image.image_references({name: "r.example/a:1"}, every("build"), recipes(app))
    assert str(caught.value).splitlines()[0] == (
        f"image_{name} is 'r.example/a:1', and {variable} is 'build', which uses no such image: "
        f"write {variable}: registry or {variable}: archive, or remove image_{name}."
    )


def test_references_of_archives(app, tmp_path):
    path = archive(tmp_path / "a.tar", oci())
    found = image.image_references({"app": path, "redis": path}, every("archive"), recipes(app))
    assert found["app_base"] == f"localhost/celery-metal/app_base:{DIGEST[:16]}"
    assert found["redis"] == f"localhost/celery-metal/redis:{DIGEST[:16]}"
    assert found["app"].startswith("localhost/celery-metal/app:")
    assert not found["app"].endswith(DIGEST[:16])


def test_another_code_leaves_what_it_requires_alone(app):
    before = image.image_references({}, every("build"), recipes(app))
    assert set(before) == {"app", "app_base", "redis"}
    code = recipes(app)
    (app / "package" / "__init__.py").write_text("x = 2\n")
    code["app_base"] = {"sources": {}, "layers": LAYERS}
    first = image.image_references({}, every("build"), code)
    (app / "package" / "__init__.py").write_text("x = 3\n")
    second = image.image_references({}, every("build"), code)
    assert first["app_base"] == second["app_base"]
    assert first["app"] != second["app"]
    # And other requirements make another app, for it is built on them.
    assert image.image_references({}, every("build"), recipes(app))["app"] != second["app"]


def test_an_old_version_is_one_that_was_kept(app):
    found = image.image_references({}, every("build"), recipes(app), "0123456789abcdef")
    assert found["app"] == "localhost/celery-metal/app:0123456789abcdef"


@pytest.mark.parametrize(
    ("images", "source", "text"),
    [
        ({"app": ""}, "archive", "image_app is empty: with image_source 'archive'"),
        ({"redis": "/nowhere.tar"}, "archive", "image_redis: /nowhere.tar cannot be read"),
        ({"app": ""}, "docker", "image_source is 'docker'; it must be one of build, reg"),
    ],
)
def test_refused_references(images, source, text):
    with pytest.raises(image.ImageError) as caught:
        image.image_references(images, every(source), {})
    assert text in str(caught.value)


def test_an_app_that_cannot_be_built_is_refused(app):
    code = recipes(app)
    code["app_base"] = {"sources": {}}
    (app / "broken").symlink_to("nowhere")
    said = image.image_references_or_problem({}, every("build"), code)["problem"].splitlines()
    assert said == [
        f"image_app_source: {app}/broken is no file, or a link to none: remove it, or mend the "
        "link.",
        "Nothing was changed on any host.",
    ]
    (app / "broken").unlink()
    assert "app" in image.image_references_or_problem({}, every("build"), code)


def test_a_build_host_outside_the_groups_is_refused(app):
    arguments = ({}, every("build"), recipes(app), "")
    assert image.image_references(*arguments, "web1", ["web1", "r1"])
    with pytest.raises(image.ImageError, match="image_build_host is 'ci', which is no host of the"):
        image.image_references(*arguments, "ci", ["web1", "r1"])


def test_variables_of_a_build_are_what_a_shell_reads():
    values = {"PIP_INDEX_URL": "https://a:b@index.example/simple", "CFLAGS": "-O2 '$HOME' \"x\""}
    script = image.shell_environment(values) + 'printf "%s\\n" "$PIP_INDEX_URL" "$CFLAGS"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(values.values())


def test_a_failure_to_bring_an_image_names_host_image_reason_and_remedy():
    tries = [{"failed": False}, {"failed": True, "msg": "unauthorized.\n"}]
    loop = {"msg": "One or more items failed", "results": tries}
    said = image.image_failure(loop, "web1", ["r.example/a:1", "r.example/r:8"], "registry")
    assert said == (
        "web1 did not get r.example/a:1 and r.example/r:8: unauthorized. Its workers run on with "
        "the image they have. Check image_app, image_redis, image_registry_auth_file and the way "
        "to the registry, or the free space of /var/lib there, then run again."
    )
    said = image.image_failure({"msg": "no space left"}, "web1", ["a:1"], "build")
    assert "a:1: no space left. Its workers" in said
    assert "have. Look at the free space" in said
    said = image.image_failure({"msg": "no space left"}, "web1", ["a:1"], "build", {"a:1": "why"})
    assert "left. What ran on a damaged image is stopped, and tasks wait in Redis. Look" in said


def test_of_a_failed_build_only_the_errors_are_told():
    pip = (
        "Failed to build image a:1: STEP 1/2: FROM b:1\nCollecting x==1\n"
        " ERROR: Could not find a version that satisfies x==1 (from versions: 2)\n"
        'ERROR: No matching distribution found for x==1\nError: building at STEP "RUN pip"'
    )
    loop = {"msg": "failed", "results": [{"failed": True, "msg": pip}, {"failed": False}]}
    told = (
        "ERROR: Could not find a version that satisfies x==1 (from versions: 2)\n"
        "ERROR: No matching distribution found for x==1"
    )
    assert image.image_build_errors(loop) == told
    runtime = {
        "msg": "Failed to build image r/a:1: STEP\n celery-metal: redis is not installed\nError"
    }
    said = image.image_failure(runtime, "web1", ["r/base:1"], "build")
    assert said == (
        "web1 did not get r/a:1: celery-metal: redis is not installed. Its workers run on with the "
        "image they have. Mend that, then run again."
    )
    assert image.image_build_errors({}) == ""


def failure(text, packages=(), **options):
    return image.image_build_failure({"msg": text}, "web1", packages, **options).splitlines()


def test_a_package_without_a_wheel_names_the_variable_for_it():
    text = "STEP 1\n   ERROR: No matching distribution found for psycopg-c==3.3.4\nError: building"
    assert failure(text) == [
        "web1 could not build the images: ERROR: No matching distribution found for "
        "psycopg-c==3.3.4",
        "  Workers run on with the image they have, on all hosts.",
        "  Fix: if psycopg-c==3.3.4 is in the package index, it has no wheel for the image's "
        "Python: write what building it needs into image_app_build_packages, such as [gcc, "
        "libc6-dev, python3-dev], require a version that has one, or set image_app_debian_release "
        "for the Python of another release. Then run again.",
    ]
    # Where sources are built already, it is not in the index.
    assert "check the mirror or the package index" in failure(text, ["gcc"])[2]


@pytest.mark.parametrize(
    "line",
    [
        "error: [Errno 2] No such file or directory: 'pg_config'",
        "Modules/common.h:9:10: fatal error: lber.h: No such file or directory",
    ],
)
def test_what_a_build_lacks_is_shown_without_the_names_of_its_steps(line):
    text = (
        f"   error: subprocess-exited-with-error\n     {line}\n  error: metadata-generation-failed"
    )
    told = failure(text, ["gcc"], damaged=True)
    assert told[0] == f"web1 could not build the images: {line}"
    assert told[1].endswith("on all hosts, but those on a damaged image are stopped.")
    assert told[2] == (
        "  Fix: add the Debian package that has the missing file to image_app_build_packages. "
        "Then run again."
    )


def test_a_source_that_cannot_be_built_is_named_with_the_variables_for_it():
    text = """
        Collecting numpy<2.3 (from shop)
          Downloading numpy-2.2.6-cp313-cp313-manylinux_2_17_x86_64.whl (16.5 MB)
        Collecting msgpack<1.1 (from shop)
          Downloading msgpack-1.0.8.tar.gz (167 kB)
          Preparing metadata (pyproject.toml): finished with status 'done'
        Collecting pandas<2.2 (from shop)
          Downloading pandas-2.1.4.tar.gz (4.3 MB)
          Installing build dependencies: finished with status 'error'
          error: subprocess-exited-with-error
          ╰─> [59 lines of output]
              Collecting numpy<2
                Downloading numpy-1.26.4.tar.gz (15.8 MB)
                error: subprocess-exited-with-error
                    ../meson.build:1:0: ERROR: Unknown compiler(s): [['c++'], ['g++']]
              error: metadata-generation-failed
        Error: building at STEP "RUN pip"
    """
    told = failure(text, ["gcc"])
    assert told[0] == (
        "web1 could not build the images: pip could not build pandas-2.1.4 from its source: the "
        "reason is above"
    )
    assert told[2] == (
        "  Fix: require a version that has a wheel for the image's Python, add what building it "
        "needs to image_app_build_packages, or set image_app_debian_release for the Python of "
        "another release. Then run again."
    )
    # Of those that were built before, none failed.
    told = failure(text.partition("Collecting pandas")[0], ["gcc"])
    assert told[0] == "web1 could not build the images: the reason is above"


def test_a_python_that_the_app_does_not_admit_names_the_variables_for_it():
    line = "ERROR: the app requires Python ==3.14.* (requires-python), and the image has 3.13.5"
    told = failure(f"STEP 1\n   {line}\nError: building")
    assert told[0] == f"web1 could not build the images: {line}"
    assert "set image_app_python, or image_app_debian_release" in told[2]
    assert "widen requires-python" in told[2]


def test_a_build_that_failed_otherwise_points_to_its_output():
    assert failure("no space left")[0] == "web1 could not build the images: the reason is above"


def test_importable_without_ansible():
    code = (
        "import sys; sys.modules['ansible'] = None; sys.path.insert(0, sys.argv[1]); "
        "import image; assert image.registry_problem('a', '')"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(image.__file__).parent)], check=True)


@pytest.mark.parametrize("release", ["bookworm main", "deb http://x/", "Bookworm", "1"])
def test_a_release_that_is_no_codename_is_refused(release):
    recipes = {"app_base": {"release": release}}
    with pytest.raises(image.ImageError, match=r"image_app_debian_release is .*: write a codename"):
        image.image_references({}, every("build"), recipes)


@pytest.mark.parametrize(
    ("wanted", "present", "version", "lacked"),
    [
        (["app", "redis"], ["a:2", "b:1", "r:1"], "", []),
        (["app", "redis"], ["a:1"], "", ["app", "redis", "app_base"]),
        (["app"], ["b:1"], "", ["app"]),
        # One that hosts have kept is not put on a base again.
        (["app"], [], "a:2", ["app"]),
        (["redis"], [], "", ["redis"]),
        ([], [], "", []),
    ],
)
def test_which_images_a_host_lacks(wanted, present, version, lacked):
    references = {"app": "a:2", "app_base": "b:1", "redis": "r:1"}
    assert image.image_lacked(references, wanted, present, version) == lacked
