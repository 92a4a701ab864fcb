"""Reading the environment, with errors that name the variable, its value and the remedy."""

from collections.abc import Mapping, MutableMapping
from pathlib import Path

EX_USAGE = 64
EXPORT = "CELERY_METAL_EXPORT"
SECRETS_DIRECTORY = "CELERY_METAL_SECRETS_DIRECTORY"


class UsageError(Exception):
    """A setting cannot be used; the text is one line for the operator."""


class BrokenError(Exception):
    """This process cannot do its work; why is in the journal already."""


def text(environ: Mapping[str, str], name: str, default: str = "") -> str:
    """The variable without surrounding blanks, or `default` where it is unset or empty."""
    return environ.get(name, "").strip() or default


def required(environ: Mapping[str, str], name: str, remedy: str) -> str:
    """The variable; UsageError with the remedy where it is unset or empty."""
    value = text(environ, name)
    if not value:
        raise UsageError(f"{name} is not set: {remedy}")
    return value


def choice(environ: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    """The variable in lower case; UsageError where it is none of `allowed`."""
    value = text(environ, name, default).lower()
    if value not in allowed:
        raise UsageError(f"{name}={value!r} is unknown: set it to one of {', '.join(allowed)}")
    return value


def positive(environ: Mapping[str, str], name: str) -> int | None:
    """The variable as an integer of 1 or more, or None where it is unset; else UsageError."""
    value = text(environ, name)
    return to_positive(name, value, value) if value else None


def to_positive(name: str, whole: str, part: str) -> int:
    """`part` of the variable's value as an integer of 1 or more; else UsageError."""
    # isascii: int() would also take digits of other scripts, and isdigit() lets no sign through.
    if part.isascii() and part.isdigit() and int(part) > 0:
        return int(part)
    raise UsageError(
        f"{name}={whole!r} is not a positive whole number: set it to 1 or more, or leave it unset"
    )


def natural(environ: Mapping[str, str], name: str) -> int:
    """The variable as an integer of 0 or more, 0 where it is unset; else UsageError."""
    value = text(environ, name, "0")
    if value.isascii() and value.isdigit():
        return int(value)
    raise UsageError(f"{name}={value!r} is not a whole number: set it to 0 or more")


def seconds(environ: Mapping[str, str], name: str) -> float:
    """The variable in seconds, 0.0 where it is unset; UsageError where it is no number >= 0."""
    value = text(environ, name, "0")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"{name}={value!r} is not a number of seconds: set it to 0 or more")
    return number


def secret(environ: Mapping[str, str], variable: str, name: str) -> str:
    """The text of a secret that a variable names; UsageError where it cannot be read."""
    path = Path(text(environ, SECRETS_DIRECTORY, "/run/secrets")) / name
    try:
        # As it is: text files would lose a carriage return.
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"{variable} names {name}, and {path} cannot be read: {reason}; run site.yml, which "
            "brings the secret"
        ) from None


def export_secrets(environ: MutableMapping[str, str]) -> None:
    """Set the variables that CELERY_METAL_EXPORT names, each to what is in the secret of its name.

    For apps that read nothing but their environment. What was set so late is not in
    /proc/1/environ, nor in what Podman shows of the container. UsageError for a missing secret.
    """
    for name in filter(None, text(environ, EXPORT).split(",")):
        environ[name] = secret(environ, EXPORT, name)
