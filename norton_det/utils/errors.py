"""The one exception for input that the user can mend."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where there is no space left, on the disk or for this user."""


class InputError(ValueError):
    """Bad input: the message is one line that says what was expected, what came, and the mend.

    Library code raises it for files, fields and arguments that came from outside; the tools print it
    after ``error:`` and exit with status 2. A programming error is never an ``InputError``.
    """

    def __init__(self, message: str = "") -> None:
        name = type(self).__name__
        if message.startswith(f"Caught {name} in "):  # PyTorch, from a process of a data loader: with its traceback
            message = message.rstrip().rpartition(f"{name}: ")[2]
        super().__init__(_visible(message))


def _visible(text: str) -> str:
    """Names in files may hold codes that a terminal obeys; line breaks are left to whoever prints."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception, limit: int = 120) -> str:
    """What an exception of a library says, in one short line, to be quoted in an ``InputError``."""
    return (str(error).splitlines() or [type(error).__name__])[0][:limit]


def why_not_written(error: Exception, place: str = "place") -> str:
    """The reason in brackets and the mend, for an ``InputError`` on what the system did not write."""
    remedy = "free some space" if getattr(error, "errno", None) in FULL else f"choose another {place}"
    return f"({getattr(error, 'strerror', None) or first_line(error)}); {remedy}"


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Put ``name``, that of a file or field, in front of the message of an ``InputError`` that the block raises."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
