"""Refuses JSON in which an object has a key twice: RFC 8259 §4 leaves open which value counts, and each reader takes another one.

The decoder of messages (msgspec) takes the last one in silence. So a cheap test comes first, which nearly every text passes, and
an exact one only where that fails:

1. A flat object whose text is as long as the shortest text of its decoded value has no key twice: the values that the decoder has
   dropped would have made the text longer.
2. A text that is equal to the encoded value has none either.
3. Else the text is parsed once more, object by object. That takes time in proportion to the text's length.

benchmarks/unique_keys.py measures what it costs.
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
"""Bytes below which encoding costs less than adding up lengths."""

_encode = msgspec.json.Encoder().encode


class DuplicateKeyError(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key[:64]!r} stands twice in one object")
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
"""Numbers are not made: they have been, and a long one costs much."""


def check_text(text: str | bytes | Raw, root: str = "$") -> None:
    """Checks JSON that has been decoded without a fault. Raises ServiceError(MALFORMED) with the path of the key."""
    try:
        refuse_duplicate(text, root)
    except (ValueError, RecursionError) as error:  # within `data`, which has not been decoded yet
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ServiceError(ErrorCode.MALFORMED, f"this is not JSON: {reason}", path=root) from error


def prefer_duplicate(text: str | bytes | Raw) -> None:
    """The same of a text that is about to be refused for something else: this comes first, if the text is JSON at all."""
    with suppress(ValueError, RecursionError):
        refuse_duplicate(text)


def refuse_duplicate(text: str | bytes | Raw, root: str = "$") -> None:
    """Raises ServiceError(MALFORMED) as `check_text` does; ValueError or RecursionError where the text is no JSON."""
    whole = text if isinstance(text, str) else bytes(text).decode(errors="surrogateescape")
    try:
        _exact(whole)
    except DuplicateKeyError as error:
        raise ServiceError(ErrorCode.MALFORMED, str(error), path=json_path(root, _place(whole))) from error


def check_value(raw: bytes, value: Any, root: str) -> None:
    """The same of JSON whose decoded value is at hand, at a fraction of the cost."""
    size = len(raw)
    if size >= SHORT and type(value) is dict:
        # The length of the shortest text of this object, if it is flat. A character takes a byte or more, escaped or not.
        shortest = 1
        for key, held in value.items():
            if type(held) is str:
                shortest += len(key) + len(held) + 6  # four quotes, a colon, and a comma or the brace
            elif type(held) is int:
                shortest += len(key) + len(str(held)) + 4
            else:
                break  # what has been added up so far is less than the size
        if shortest == size:
            return
    if _encode(value) != raw:
        check_text(raw, root)


class _Object(list[tuple[str, Any]]):
    """An object with all its members."""


def _place(text: str) -> list[str | int]:
    """The way to the first key that stands a second time. Only for a text that is refused."""
    root = json.loads(text, object_pairs_hook=_Object, parse_int=_no_number, parse_float=_no_number, strict=False)
    waiting: list[tuple[list[str | int], Any]] = [([], root)]
    while waiting:
        way, held = waiting.pop()
        if isinstance(held, _Object) and len({key for key, _ in held}) < len(held):
            return [*way, _first_duplicate(held)]
        waiting += reversed([([*way, step], child) for step, child in _children(held)])
    raise AssertionError("the text has no key twice")


def _children(held: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(held, _Object):
        yield from held
    elif isinstance(held, list):
        yield from enumerate(held)
