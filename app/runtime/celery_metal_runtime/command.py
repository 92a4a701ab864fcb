"""`run`: any other command with the environment of the worker, in this process's own place."""

import os
import signal
import sys
from typing import NoReturn

from celery_metal_runtime.broker import export_address
from celery_metal_runtime.settings import UsageError, export_secrets, text

# Celery takes the loader of each app from here, and its --loader writes it; see `loader`.
CELERYS_LOADER = "CELERY_LOADER"
LOADER = "celery_metal_runtime.loader:load"
# Where `run` keeps what the user has set there.
OWN_LOADER = "CELERY_METAL_LOADER"
# As shells have them.
NOT_EXECUTABLE, NOT_FOUND = 126, 127


def run(argv: list[str]) -> NoReturn:
    """Replace this process by the command `argv`; UsageError where a secret is missing.

    The command finds the exported secrets in its environment, and each Celery app in it uses the
    worker's broker. Exits with 127 for a command that is not found, 126 for one that cannot run.
    """
    if not (argv and argv[0]):
        raise UsageError("run has no command: name one, as in celery-metal-run celery status")
    export_secrets(os.environ)
    export_address(os.environ)
    own = text(os.environ, CELERYS_LOADER)
    if own and own != LOADER:
        os.environ[OWN_LOADER] = own
    os.environ[CELERYS_LOADER] = LOADER
    # Python ignores these two, and what is ignored stays so.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        is_absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        print(f"celery-metal: run: {argv[0]!r}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(NOT_FOUND if is_absent else NOT_EXECUTABLE)
