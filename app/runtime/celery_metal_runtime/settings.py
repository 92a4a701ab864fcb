"""Reading the environment, with errors that name the variable, its value and the remedy."""

from collections.abc import Mapping

EX_USAGE = 64


class UsageError(Exception):
    """A setting cannot be used; the text is one line for the operator."""


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
