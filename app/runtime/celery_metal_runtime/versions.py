"""Which versions of Celery, kombu and redis-py this runtime works with.

It builds on what they do not promise: an unknown version might take tasks without a trace.
"""

import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from celery_metal_runtime.settings import UsageError

if TYPE_CHECKING:
    from celery import Celery

# From this version on, and up to the last that begins with the other.
SUPPORTED = {
    "celery": ((5, 4), (5, 7)),
    "kombu": ((5, 3, 4), (5, 7)),
    "redis": ((4, 4, 4), (8,)),
}
# kombu 5.7 refuses older ones itself, but only when it connects, and with a traceback.
KOMBU_THAT_NEEDS_REDIS = ((5, 7), (6, 1))


def check(find: Callable[[str], str] = version) -> dict[str, str]:
    """The installed versions by package; nothing of them is imported.

    `find` tells a package's version, or raises PackageNotFoundError.
    Raises UsageError for a package that is absent, or a version that is not supported.
    """
    found = {}
    for name, (oldest, newest) in SUPPORTED.items():
        try:
            found[name] = find(name)
        except PackageNotFoundError:
            raise UsageError(
                f"{name} is not installed, and {_text(oldest)} or newer is needed: add "
                "celery[redis] to the app's requirements or image_app_extra_requirements"
            ) from None
        numbers = _numbers(found[name])
        if numbers < oldest:
            _refuse(name, found[name], f"{_text(oldest)} or newer is needed")
        if numbers[: len(newest)] > newest:
            _refuse(name, found[name], f"{_text(newest)} is the newest that celery-metal knows")
    kombu, redis = KOMBU_THAT_NEEDS_REDIS
    if _numbers(found["kombu"]) >= kombu and _numbers(found["redis"]) < redis:
        needs = f"kombu {found['kombu']} needs {_text(redis)} or newer"
        remedy = f"redis>={_text(redis)} or kombu<{_text(kombu)}"
        _refuse("redis", found["redis"], needs, f"add {remedy} to the app's requirements")
    return found


def show() -> None:
    """Print the versions, after all that the runtime needs of them has been loaded.

    For the build of an image. Raises UsageError as `check` does, and for what cannot be loaded.
    """
    found = check()
    try:
        from celery_metal_runtime import health, transport  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"Celery's worker for Redis cannot be loaded: {error}; add celery[redis] to the app's "
            "requirements or image_app_extra_requirements"
        ) from None
    versions = [f"{name} {number}" for name, number in found.items()]
    print(", ".join([*versions, f"Python {sys.version.split()[0]}"]))


def is_set(app: "Celery", name: str) -> bool:
    """Whether `app` sets this itself; `value_set_for` overlooks old names before Celery 5.7."""
    conf: Any = app.conf.finalize()
    own = type(conf)({}, conf.maps[:-1], conf._keys, conf.prefix)
    return own.get(name, own) is not own


def put(app: "Celery", **settings: Any) -> None:
    """Set what `app` may set itself, also under the prefix of its namespace.

    Before Celery 5.7 what an app sets with the prefix goes before what is set without.
    """
    conf: Any = app.conf.finalize()
    for name, value in settings.items():
        conf[conf._to_keys(name)[0]] = value


def _refuse(
    name: str, number: str, reason: str, remedy: str = "change the app's requirements"
) -> None:
    raise UsageError(
        f"{name} {number} is installed, and {reason}: {remedy}; see 'Versions' in docs/images.md"
    )


def _numbers(number: str) -> tuple[int, ...]:
    # Also of 5.6.0rc1, which counts as 5.6.0.
    found = re.match(r"\d+(\.\d+)*", number)
    return tuple(map(int, found[0].split("."))) if found else ()


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
