"""Which versions of Celery, kombu and redis-py are taken, and what is said of the others."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from celery import Celery
from celery_metal_runtime.settings import UsageError
from celery_metal_runtime.versions import SUPPORTED, check, is_set
from runtime_lab import HERE, base_environ, run

pytestmark = pytest.mark.versions

GOOD = {"celery": "5.5.1", "kombu": "5.5.2", "redis": "4.4.4"}


def finder(**versions):
    installed = GOOD | versions

    def find(name):
        if not installed[name]:
            raise PackageNotFoundError(name)
        return installed[name]

    return find


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"celery": "5.4.0", "kombu": "5.3.4"},
        {"celery": "5.4.0rc2", "kombu": "5.4.0"},
        {"celery": "5.7.12", "kombu": "5.7.3.post1", "redis": "6.1.0"},
        {"celery": "5.6.3", "kombu": "5.7.0", "redis": "8.99.1"},
    ],
)
def test_a_known_version_is_taken(versions):
    assert check(finder(**versions)) == GOOD | versions


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"celery": "5.2.7"}, "celery 5.2.7 is installed, and 5.4 or newer is needed: change"),
        ({"celery": "5.3.6"}, "celery 5.3.6 is installed, and 5.4 or newer is needed: change"),
        ({"celery": "5.8.0"}, "celery 5.8.0 is installed, and 5.7 is the newest that"),
        ({"celery": "6.0.0a1"}, "celery 6.0.0a1 is installed, and 5.7 is the newest that"),
        ({"kombu": "5.3.3"}, "kombu 5.3.3 is installed, and 5.3.4 or newer is needed: change"),
        ({"kombu": "5.10.0"}, "kombu 5.10.0 is installed, and 5.7 is the newest that"),
        ({"redis": "3.5.3"}, "redis 3.5.3 is installed, and 4.4.4 or newer is needed: change"),
        ({"redis": "9.0.0"}, "redis 9.0.0 is installed, and 8 is the newest that"),
        (
            {"kombu": "5.7.0", "redis": "5.3.1"},
            "redis 5.3.1 is installed, and kombu 5.7.0 needs 6.1 or newer: add redis>=6.1 or "
            "kombu<5.7 to",
        ),
        (
            {"redis": ""},
            "redis is not installed, and 4.4.4 or newer is needed: add celery[redis] to",
        ),
    ],
)
def test_any_other_is_refused_with_the_remedy(versions, told):
    with pytest.raises(UsageError, match=f"^{re.escape(told)}.*app's requirements"):
        check(finder(**versions))


def test_the_versions_are_told():
    done = run({"CELERY_APP": ""}, "versions", fresh=True)
    assert done.returncode == 0, done.stderr
    names = ", ".join(f"{name} {version(name)}" for name in GOOD)
    assert done.stdout == f"{names}, Python {sys.version.split()[0]}\n"


@pytest.fixture
def installed(tmp_path):
    """A directory in which a package of a name and a version is installed."""

    def install(name, number):
        folder = tmp_path / f"{name}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}")
        # What Celery would fail with, were it imported before the look at its version.
        (tmp_path / "celery.py").write_text("raise SystemExit('imported')\n")
        return {"PYTHONPATH": f"{tmp_path}:{base_environ()['PYTHONPATH']}"}

    return install


@pytest.mark.parametrize("command", [[], ["versions"], ["inspect", "ping"]])
def test_an_old_version_is_one_line_and_exit_64_before_anything_else(installed, command):
    done = run(installed("celery", "5.2.7"), *command, fresh=True)
    assert done.returncode == 64
    assert done.stderr.splitlines() == [
        "celery-metal: celery 5.2.7 is installed, and 5.4 or newer is needed: change the app's "
        "requirements; see 'Versions' in docs/images.md"
    ]


def test_an_image_without_what_celery_needs_for_redis_is_refused(tmp_path):
    (tmp_path / "kombu").mkdir()
    (tmp_path / "kombu" / "__init__.py").write_text("raise ImportError('no packaging')\n")
    done = run({"PYTHONPATH": f"{tmp_path}:{base_environ()['PYTHONPATH']}"}, "versions", fresh=True)
    assert done.returncode == 64
    assert len(done.stderr.splitlines()) == 1
    told = (
        "no packaging; add celery[redis] to the app's requirements or image_app_extra_requirements"
    )
    assert f"cannot be loaded: {told}" in done.stderr


SOURCES = {
    "new": ({"worker_prefetch_multiplier": 4}, {}),
    "namespace": ({"MY_WORKER_PREFETCH_MULTIPLIER": 4}, {"namespace": "MY"}),
    "old": ({"CELERYD_PREFETCH_MULTIPLIER": 4, "CELERY_TASK_SERIALIZER": "json"}, {}),
}


@pytest.mark.parametrize("names", SOURCES)
def test_what_an_app_sets_itself_is_seen(names):
    source, options = SOURCES[names]
    app = Celery("user", set_as_current=False)
    app.config_from_object(source, **options)
    assert is_set(app, "worker_prefetch_multiplier")
    assert not is_set(app, "broker_connection_max_retries")


def test_the_pairs_that_are_tried_are_the_ends_of_what_is_supported():
    locks = [path.read_text() for path in (HERE / "versions").glob("*.txt")]
    found = [dict(re.findall(r"^(celery|kombu|redis)==(\S+)", lock, re.M)) for lock in locks]
    assert all(check(finder(**pair)) == pair for pair in found)
    for name, (oldest, _) in SUPPORTED.items():
        numbers = [tuple(map(int, pair[name].split("."))) for pair in found]
        assert min(numbers)[: len(oldest)] == oldest
    minors = sorted(pair["celery"].rpartition(".")[0] for pair in found)
    assert minors == ["5.4", "5.4", "5.5", "5.5", "5.6", "5.6", "5.7"]
