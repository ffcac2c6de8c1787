"""What an error says of the way to a bucket: does it pass by itself, or has someone to mend it?

The three packages that reach a bucket have errors of their own kinds for the same few things.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Literal

AGAIN = os.EX_TEMPFAIL  # exit code of a command that may do better later, as it is

Kind = Literal["passing", "forbidden", "no bucket"]
_CLIENTS = ("aiohttp", "gcsfs", "google", "requests")
_PASSING = (408, 429, *range(500, 600))
# How TensorStore and gcsfs begin errors of Python's own types.
_BEGINS = {
    "passing": "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED|INTERNAL",
    "forbidden": "PERMISSION_DENIED|UNAUTHENTICATED|Forbidden",
}


def kind(error: BaseException) -> Kind | None:
    """What is wrong with the way to a bucket; None where an error is of something else."""
    found = (_kind(link) for link in _chain(error))
    return next((k for k in found if k), None)


def exit_code(error: BaseException) -> int:
    """Its own, such as AGAIN; 2 where someone has to mend something, 1 where nobody knows."""
    return getattr(error, "exit_code", 2 if isinstance(error, (ValueError, OSError)) else 1)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kind(error: BaseException) -> Kind | None:
    """Of one error, without those that it came from."""
    where, text = type(error).__module__.split(".")[0], str(error)
    if where in _CLIENTS:
        status = str(getattr(error, "code", None) or "")
        name = type(error).__name__
        if status in ("401", "403") or name == "DefaultCredentialsError":
            return "forbidden"
        if status == "404" and where == "google":
            return "no bucket"
        return "passing" if not status.isdecimal() or int(status) in _PASSING else None
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "passing"
    if where == "builtins":
        for found, begins in _BEGINS.items():
            if re.match(rf"({begins})\b", text):
                return found
    return None
