"""JSON Pointers (RFC 6901): paths to one value in a JSON document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Pointer = tuple[str, ...]

_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def parse(text: str) -> Pointer:
    """Parses a pointer.

    Raises ValueError with a sentence.
    """
    if not _POINTER.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is not a JSON Pointer: it starts with '/', and '~' stands only in ~0 and ~1")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:])


def text_of(steps: Iterable[str | int]) -> str:
    """Returns the pointer with these steps as text."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def find(data: Any, pointer: Pointer) -> Any:
    """Returns the value at the pointer.

    Raises LookupError if there is none.
    """
    for token in pointer:
        if isinstance(data, dict):
            data = data[token]
        elif isinstance(data, list) and _INDEX.fullmatch(token):
            data = data[int(token)]
        else:
            raise LookupError(token)
    return data
