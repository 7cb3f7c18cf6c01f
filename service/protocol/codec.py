"""Decodes frames to commands. Any input results in commands or a ServiceError, never in another exception."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.messages import Command
from service.protocol.unique_keys import check_text, check_text_first


class _Head(Struct, frozen=True):
    """The fields that decide how to decode the rest."""

    type: str
    removed: Any = False


class _Id(Struct, frozen=True):
    id: str | None = None


class _CheckedId(Struct, frozen=True):
    id: messages.Id | None = None


_head = msgspec.json.Decoder(_Head)
_id = msgspec.json.Decoder(_Id)
_checked_id = msgspec.json.Decoder(_CheckedId)
_batch = msgspec.json.Decoder(list[Raw])
_publish = msgspec.json.Decoder(messages.Publish)
_remove = msgspec.json.Decoder(messages.Remove)
_system: dict[str, msgspec.json.Decoder[Any]] = {
    message.__struct_config__.tag: msgspec.json.Decoder(message)  # type: ignore[misc]  # tags here are strings
    for message in (
        messages.Hello,
        messages.Ready,
        messages.Subscribe,
        messages.Unsubscribe,
        messages.History,
        messages.Presence,
        messages.PresenceUpdate,
        messages.Refresh,
        messages.Ping,
        messages.Call,
    )
}

_PRESENCE_UPDATE = messages.TAGS[messages.PresenceUpdate]
"""The only message with a dot in its type that is no event."""
_TYPE_FIRST = '{"type":"'
_TYPE_START = len(_TYPE_FIRST)
_READY = messages.Ready()
_READY_TEXT = messages.encode(_READY).decode()
_WITHOUT_ID = len('{"type":"","channel":"","data":}')
_MORE_WITH_ID = len(',"id":""')
_MORE_WITH_KEY = len(',"key":""')
_MORE_WITH_IF_REV = len(',"if_rev":')

MAX_REASON = 300
"""Maximum number of characters of msgspec's message that are sent. It quotes names of unknown fields, which may be long."""

# Exceptions of msgspec, and of what it does not check: invalid UTF-8, lone surrogates, nesting deeper than the stack.
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")


def split(frame: str | bytes) -> Iterator[str | Raw]:
    """Yields the messages of one frame: the frame itself, or each message of a batch.

    Raises ServiceError(MALFORMED) if the frame is not UTF-8, or not a valid batch.
    """
    frame = _text(frame)
    first = frame[:1]
    if first != "{":  # nearly every frame starts with `{`; others may start with spaces
        first = frame.lstrip()[:1]
    if first != "[":
        yield frame
        return
    try:
        batch = _batch.decode(frame)
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the batch is not JSON: {_reason(error)}", path="$") from error
    yield from batch


def size_of(message: str | Raw) -> int:
    """Returns the bytes of a message in UTF-8."""
    if type(message) is str:
        return len(message) if message.isascii() else len(message.encode())
    return len(message)


def decode(message: str | bytes | Raw, size: int | None = None) -> Command:
    """Decodes one message. `size`: the result of `size_of`, if the caller has it.

    Raises ServiceError: MALFORMED (not JSON, or a duplicate key), UNKNOWN_TYPE, or INVALID_MESSAGE with details.path.
    """
    if message == _READY_TEXT:  # every client sends it once, in this spelling
        return _READY
    if type(message) is str and message.startswith(_TYPE_FIRST):
        # As clients send it: the type is read without decoding. Whatever is wrong or unusual is decoded again below.
        kind = message[_TYPE_START : message.find('"', _TYPE_START)]
        # Nearly every message is a publish, so there is no look-up for it.
        likely = _publish if "." in kind and kind != _PRESENCE_UPDATE else _system.get(kind)
        if likely is not None:
            try:
                found: Command = likely.decode(message)
            except _UNREADABLE:
                pass
            else:
                if is_shortest(size_of(message) if size is None else size, found) and _has_valid_id(found):
                    return found
    if isinstance(message, bytes):
        message = _text(message)
    try:
        head = _head.decode(message)
    except msgspec.ValidationError as error:
        check_text_first(message)
        raise _invalid(error) from error
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the message is not JSON: {_reason(error)}", path="$") from error
    kind = head.type
    decoder: msgspec.json.Decoder[Any] | None = _system.get(kind)
    if decoder is None and "." in kind:
        decoder = _remove if head.removed is True else _publish
    if decoder is None:
        check_text_first(message)
        raise ServiceError(
            ErrorCode.UNKNOWN_TYPE,
            f"no message has the type {kind[:64]!r}; event types contain a dot",
            path="$.type",
            known=sorted(_system),
        )
    try:
        command: Command = decoder.decode(message)
        if not _has_valid_id(command):
            _checked_id.decode(message)
    except msgspec.ValidationError as error:
        check_text_first(message)
        raise _invalid(error) from error
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the message is not JSON: {_reason(error)}", path="$") from error
    if not is_shortest(size_of(message), command):
        check_text(message)
    return command


def _has_valid_id(command: Command) -> bool:
    """True if the id of a publish, if any, has only the characters of `messages.Id`. The decoder has checked all other ids."""
    if type(command) is not messages.Publish or (name := command.id) is None:
        return True
    return name.isascii() and name.isprintable() and " " not in name


def is_shortest(size: int, command: Command) -> bool:
    """Whether a message of `size` bytes is as short as the encoder would write this command, with the same `data`.

    Then it has no duplicate key outside of `data`: a second one would make it longer. The encoder omits defaults and spaces, and
    the decoder accepts no integer like 1e3, so there is no shorter text. The gate checks `data` itself (unique_keys.py). For a
    publish, lengths are added up instead of encoding it, because `data` can be large.
    """
    if type(command) is not messages.Publish:
        return len(messages.encode(command)) == size
    shortest = _WITHOUT_ID + len(command.type) + len(command.channel) + len(command.data)
    if (name := command.id) is not None:
        shortest += _MORE_WITH_ID + len(name)
    if (key := command.key) is not None:
        shortest += _MORE_WITH_KEY + len(key)
    if (rev := command.if_rev) is not None:
        shortest += _MORE_WITH_IF_REV + len(str(rev))
    return shortest == size


def message_id(message: str | bytes | Raw) -> str | None:
    """Returns the id of a message that could not be decoded, for the error reply; None without one."""
    try:
        found = _id.decode(message).id
    except (msgspec.ValidationError, *_UNREADABLE):
        return None
    return found if found is not None and len(found) <= messages.MAX_ID else None


def invalid(error: msgspec.ValidationError, code: ErrorCode = ErrorCode.INVALID_MESSAGE) -> ServiceError:
    """Converts an error of msgspec to a ServiceError, with the JSON path in its details."""
    text = str(error)
    path = "$"
    if found := _PATH.search(text):
        path, text = found["path"], text[: found.start()]
    if found := _FIELD.search(text):
        path = f"{path}.{found['name'][:64]}"
    return ServiceError(code, text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} …", path=path)


_invalid = invalid


def _text(frame: str | bytes) -> str:
    """Returns the frame as text. Checks UTF-8, because msgspec does not check `data`, which every subscriber receives."""
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
