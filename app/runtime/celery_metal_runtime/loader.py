"""The loader of Celery apps in a process that `run` started: points each at the worker's broker.

CELERY_LOADER names it. An app makes its loader before it reads its configuration. The app's own
loader does all the work; here it is only followed by `configure`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from celery import Celery
from celery.loaders import get_loader_cls
from celery.loaders.base import BaseLoader

from celery_metal_runtime.broker import configure
from celery_metal_runtime.command import OWN_LOADER
from celery_metal_runtime.settings import EX_USAGE, UsageError, text
from celery_metal_runtime.versions import is_set


class Followed(BaseLoader):
    """A loader whose app is configured by the runtime when it has configured itself."""

    @property
    def conf(self) -> Any:
        """What the app reads first. Before, it may have no signals, as under Django."""
        self.app.on_after_configure.connect(_configure)
        return super().conf


def load(app: Celery) -> Any:
    """The loader that `app` would have without this one, followed by `configure`."""
    # Again before it connects: by then a module may have set another broker.
    for name in ("connection_for_read", "connection_for_write"):
        setattr(app, name, partial(_connect, app, getattr(app, name)))
    own = text(os.environ, OWN_LOADER) or type(app).loader_cls
    # Celery's app for processes without one reads celeryconfig.py.
    is_default = app.main == "default" and not app.set_as_current
    loader = get_loader_cls(own or ("default" if is_default else "app"))
    return type(loader.__name__, (Followed, loader), {})(app=app)


def _connect(app: Celery, connect: Callable[..., Any], *args: Any, **options: Any) -> Any:
    _configure(app)
    return connect(*args, **options)


def _configure(sender: Celery, **_: Any) -> None:
    if _is_apart(sender):
        return
    try:
        configure(sender)
    except UsageError as error:
        # Signals log an exception and go on; the app would use a broker of its own.
        print(f"celery-metal: {error}", file=sys.stderr, flush=True)
        sys.exit(EX_USAGE)


def _is_apart(app: Celery) -> bool:
    """Whether it is a second app beside CELERY_APP, with a broker of its own, as in a worker."""
    of_worker = next(_apps_of_worker(text(os.environ, "CELERY_APP")), app)
    return of_worker is not app and is_set(app, "broker_url")


def _apps_of_worker(name: str) -> Iterator[Celery]:
    """What `celery -A name` would take of the modules that are loaded."""
    module, _, attribute = name.partition(":")
    parent, _, last = module.rpartition(".")
    places = [(module, attribute)] if attribute else [(parent, last)]
    if not attribute:
        both = (module, f"{module}.celery")
        places += [(one, named) for one in both for named in ("app", "celery")]
    for one, named in places:
        found = getattr(sys.modules.get(one), named, None)
        if isinstance(found, Celery):
            yield found
