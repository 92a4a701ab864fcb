"""The password of Redis, as its file has it when a connection is made.

A process outlives a rotation: the earlier password ends, its connections with it, and the file has
the next one. Of Celery, kombu and redis-py the oldest that are supported take no provider of
credentials, so this is done where a connection logs in: to the broker, the results and Sentinels.
"""

from pathlib import Path
from typing import Any

from redis import connection

from celery_metal_runtime.notify import say

#: Each user and password that a file has had in this process, to the file.
_files: dict[tuple[str, str], Path] = {}
_unread: set[str] = set()


def follow(path: str, user: str, password: str) -> None:
    """Have each connection that would log in with `password` do so with what the file has then.

    `user` is empty for Redis's default user. Connections of other users stay as they are.
    """
    # Absolute: the program may change its directory. Links stay: they may point elsewhere by then.
    _files[user, password] = Path(path).absolute()
    patched: Any = getattr(connection, "AbstractConnection", connection.Connection)
    # redis-py before 6 has the other one alone.
    name = next(one for one in ("on_connect_check_health", "on_connect") if hasattr(patched, one))
    log_in = getattr(patched, name)
    if getattr(log_in, "reads_again", False):
        return

    def read_and_log_in(self: Any, *args: Any, **options: Any) -> Any:
        login = self.username or "", self.password or ""
        if path := _files.get(login):
            self.password = _newest(path, *login)
        return log_in(self, *args, **options)

    marked: Any = read_and_log_in
    marked.reads_again = True
    setattr(patched, name, marked)


def _newest(path: Path, user: str, known: str) -> str:
    try:
        found = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        # Redis may still take what is known.
        reason = f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}"
        if reason not in _unread:
            _unread.add(reason)
            say(f"{reason}; this process logs in to Redis with the password that it has had before")
        return known
    if not found:
        return known
    _files[user, found] = path
    return found
