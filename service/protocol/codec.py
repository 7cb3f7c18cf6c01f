"""Bytes to commands. Any input gives commands or a `ServiceError`; no other exception escapes (held by a property test)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.messages import Command
from service.protocol.unique_keys import check_text, prefer_duplicate


class _Head(Struct, frozen=True):
    """The two fields that decide how to read the rest and where to send a refusal."""

    type: str


class _Id(Struct, frozen=True):
    id: str | None = None


_head = msgspec.json.Decoder(_Head)
_id = msgspec.json.Decoder(_Id)
_batch = msgspec.json.Decoder(list[Raw])
_publish = msgspec.json.Decoder(messages.Publish)
_system: dict[str, msgspec.json.Decoder[Any]] = {
    message.__struct_config__.tag: msgspec.json.Decoder(message)  # type: ignore[misc]  # tags here are strings
    for message in (
        messages.Hello,
        messages.Ready,
        messages.Subscribe,
        messages.Unsubscribe,
        messages.History,
        messages.Presence,
        messages.Refresh,
        messages.Ping,
    )
}

_WITHOUT_ID = len('{"type":"","channel":"","data":}')
_MORE_WITH_ID = len(',"id":""')
_MORE_WITH_KEY = len(',"key":""')

MAX_COMPLAINT = 300
"""Characters of msgspec's sentence that are told: it quotes an unknown field's name, however long."""

# msgspec's own exceptions, and what it lets through: bytes that are no UTF-8, text that cannot become UTF-8 (lone surrogates),
# and nesting deeper than the interpreter's stack.
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")


def split(frame: str | bytes) -> Iterator[str | Raw]:
    """Gives the messages of one frame: itself, or each of a batch.

    Raises ServiceError(MALFORMED) if the frame is not UTF-8, or a batch that cannot be taken apart.
    """
    frame = _text(frame)
    first = frame[:1]
    if first != "{":  # nearly every frame is an object that starts at once; others may have spaces first
        first = frame.lstrip()[:1]
    if first != "[":
        yield frame
        return
    try:
        batch = _batch.decode(frame)
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the batch is not JSON: {_reason(error)}", path="$") from error
    yield from batch


def decode(message: str | bytes | Raw) -> Command:
    """Reads one message.

    Raises ServiceError: MALFORMED (not JSON, a key twice in an object), UNKNOWN_TYPE, or INVALID_MESSAGE with details.path.
    """
    if isinstance(message, bytes):
        message = _text(message)
    try:
        kind = _head.decode(message).type
    except msgspec.ValidationError as error:
        prefer_duplicate(message)
        raise _invalid(error) from error
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the message is not JSON: {_reason(error)}", path="$") from error
    decoder = _publish if "." in kind else _system.get(kind)
    if decoder is None:
        prefer_duplicate(message)
        raise ServiceError(
            ErrorCode.UNKNOWN_TYPE,
            f"no message has the type {kind[:64]!r}; event types contain a dot",
            path="$.type",
            known=sorted(_system),
        )
    try:
        command = decoder.decode(message)
    except msgspec.ValidationError as error:
        prefer_duplicate(message)
        raise _invalid(error) from error
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the message is not JSON: {_reason(error)}", path="$") from error
    if not is_shortest(message, command):
        check_text(message)
    return command


def is_shortest(message: str | Raw, command: Command) -> bool:
    """Whether no other text of this message is shorter, with the same `data` if it has any: then it has no key twice beside
    `data`, which the gate looks at. See unique_keys.py.

    The encoder writes the shortest text there is: it leaves out what is default, and the decoder takes no number like 1e3 for an
    integer. A publish is not encoded but added up, as its `data` can be large.
    """
    size = len(message) if not isinstance(message, str) or message.isascii() else len(message.encode())
    if not isinstance(command, messages.Publish):
        return len(messages.encode(command)) == size
    shortest = _WITHOUT_ID + len(command.type) + len(command.channel) + len(command.data)
    if (name := command.id) is not None:
        shortest += _MORE_WITH_ID + len(name)
    if (key := command.key) is not None:
        shortest += _MORE_WITH_KEY + len(key)
    return shortest == size


def id_of(message: str | bytes | Raw) -> str | None:
    """The id of a message that could not be decoded, so that its sender can match the error; None if it has none."""
    try:
        found = _id.decode(message).id
    except (msgspec.ValidationError, *_UNREADABLE):
        return None
    return found if found is not None and len(found) <= messages.MAX_ID else None


def invalid(error: msgspec.ValidationError, code: ErrorCode = ErrorCode.INVALID_MESSAGE) -> ServiceError:
    """Turns msgspec's complaint into ours: the sentence, and the JSON path on its own."""
    text = str(error)
    path = "$"
    if found := _PATH.search(text):
        path, text = found["path"], text[: found.start()]
    if found := _FIELD.search(text):
        path = f"{path}.{found['name'][:64]}"
    return ServiceError(code, text if len(text) <= MAX_COMPLAINT else f"{text[:MAX_COMPLAINT]} …", path=path)


_invalid = invalid


def _text(frame: str | bytes) -> str:
    """The frame as text. msgspec does not look inside the `data` it passes through, and it goes to every subscriber."""
    if isinstance(frame, str):
        return frame
    try:
        return frame.decode()
    except UnicodeDecodeError as error:
        raise ServiceError(ErrorCode.MALFORMED, "the frame is not UTF-8", path="$") from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    return str(error)
