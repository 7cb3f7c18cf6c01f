"""Refuses JSON objects with duplicate keys. RFC 8259 §4 does not say which value counts, and parsers differ.

The decoder of messages (msgspec) silently uses the last value. Each step here is slower than the one before, and runs only if
that has not decided. Nearly every text passes step 1 or 2.

1. If the text of a flat object is as long as the shortest text of its decoded value, no key is duplicate. A duplicate would make
   the text longer.
2. If the text equals the encoded value, no key is duplicate.
3. Otherwise the text is parsed again, object by object, in time proportional to its length.

benchmarks/unique_keys.py measures the cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw

from service.errors import ErrorCode, ServiceError
from service.protocol.json_path import json_path

SHORT = 512
"""For texts of fewer bytes, encoding is faster than adding up lengths."""

_encode = msgspec.json.Encoder().encode


class DuplicateKeyError(ValueError):
    """An object has a duplicate key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key[:64]!r} appears twice in one object")
        self.key = key


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(…, object_pairs_hook=reject_duplicate_keys)`. Raises DuplicateKeyError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DuplicateKeyError(_first_duplicate(pairs))
    return found


def _first_duplicate(pairs: list[tuple[str, Any]]) -> str:
    seen = set[str]()
    return next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # adds it


def _no_number(text: str) -> int:
    return 0


_exact = json.JSONDecoder(
    object_pairs_hook=reject_duplicate_keys, parse_int=_no_number, parse_float=_no_number, strict=False
).decode
"""Does not convert numbers: the first decoder has done that, and it is slow for long numbers."""


def check_text(text: str | bytes | Raw, root: str = "$") -> None:
    """Checks JSON that was decoded successfully. Raises ServiceError(MALFORMED) with the path of a duplicate key."""
    try:
        refuse_duplicate(text, root)
    except (ValueError, RecursionError) as error:  # within `data`, which is not decoded yet
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ServiceError(ErrorCode.MALFORMED, f"this is not JSON: {reason}", path=root) from error


def check_text_first(text: str | bytes | Raw) -> None:
    """Like `check_text`, for a text that would be refused for another reason. Ignores text that is not JSON."""
    with suppress(ValueError, RecursionError):
        refuse_duplicate(text)


def refuse_duplicate(text: str | bytes | Raw, root: str = "$") -> None:
    """Raises ServiceError(MALFORMED) for a duplicate key; ValueError or RecursionError if the text is not JSON."""
    whole = text if isinstance(text, str) else bytes(text).decode(errors="surrogateescape")
    try:
        _exact(whole)
    except DuplicateKeyError as error:
        raise ServiceError(ErrorCode.MALFORMED, str(error), path=json_path(root, _place(whole))) from error


def check_value(raw: bytes, value: Any, root: str) -> None:
    """Like `check_text`, but much faster, because the decoded value is known."""
    size = len(raw)
    if size >= SHORT and type(value) is dict:
        # The length of the shortest text of this object, if it is flat. A character has at least one byte, escaped or not.
        shortest = 1
        for key, held in value.items():
            if type(held) is str:
                shortest += len(key) + len(held) + 6  # four quotes, a colon, and a comma or the brace
            elif type(held) is int:
                shortest += len(key) + len(str(held)) + 4
            else:
                break  # not flat: the sum stays below the size, so the next step decides
        if shortest == size:
            return
    if _encode(value) != raw:
        check_text(raw, root)


class _Object(list[tuple[str, Any]]):
    """An object with all its members, duplicates included."""


def _place(text: str) -> list[str | int]:
    """Returns the path to the first duplicate key. Only called for refused text."""
    root = json.loads(text, object_pairs_hook=_Object, parse_int=_no_number, parse_float=_no_number, strict=False)
    waiting: list[tuple[list[str | int], Any]] = [([], root)]
    while waiting:
        way, held = waiting.pop()
        if isinstance(held, _Object) and len({key for key, _ in held}) < len(held):
            return [*way, _first_duplicate(held)]
        waiting += reversed([([*way, step], child) for step, child in _children(held)])
    raise AssertionError("the text has no duplicate key")


def _children(held: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(held, _Object):
        yield from held
    elif isinstance(held, list):
        yield from enumerate(held)
