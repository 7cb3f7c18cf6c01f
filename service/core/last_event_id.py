"""Positions in the ids of server-sent events, so that a browser's EventSource resumes by itself.

An id is `<check>.<position>,<position>,…`: one position for each channel, in the order of the address. It is empty before
the first one. A position is `epoch:offset:id`, each percent-encoded. The check is a hash of the channels' names: it keeps an
id from being used for other channels.

Example:
    tracker = PositionTracker(("room:1",), {})
    tracker.apply(read_moves(payload))
    tracker.encode()  # b"5f3c….a1b2c3d4:7:m-1"
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from service.core.position import Position
from service.errors import ErrorCode, ServiceError

MAX_CHANNELS = 8
"""Channels of one id. A browser sends it in a header, and proxies limit headers to about 8 kB."""
MAX_ID_CHARS = 8_192
"""Characters of an id that is read."""
_CHECK_CHARS = 8
_MAX_PART_CHARS = 64
"""Characters of an epoch and of an event's id, as in the protocol's `since`."""
_MAX_DIGITS = 16
"""Digits of the largest offset."""


class Move(Struct, frozen=True, gc=False):
    """A change of the position in one channel."""

    channel: str
    offset: int | None
    """None if the subscription has ended."""
    id: str | None
    epoch: str | None = None
    """None if the epoch has not changed."""


class Positioned(Struct, frozen=True, gc=False):
    """The fields of a message of the service that say how far it brings a client."""

    type: str = ""
    channel: str = ""
    id: str | None = None
    epoch: str | None = None
    offset: int | None = None
    last: str | None = None
    rev: int | None = None


_decode = msgspec.json.Decoder(list[Positioned] | Positioned).decode


def read_positions(payload: bytes) -> list[Positioned]:
    """Returns the messages in a frame of the service."""
    messages = _decode(payload)
    return messages if isinstance(messages, list) else [messages]


def read_moves(payload: bytes) -> tuple[Move, ...]:
    """Returns the moves of the messages in a frame of the service."""
    moves = map(_move, read_positions(payload))
    return tuple(move for move in moves if move is not None)


def _move(message: Positioned) -> Move | None:
    if message.type == "subscribed":
        return Move(message.channel, message.offset, message.last, message.epoch)
    if message.type == "unsubscribed":
        return Move(message.channel, None, None)
    if message.offset is not None and "." in message.type:
        return Move(message.channel, message.offset, message.id)
    return None


class PositionTracker:
    """The positions of one stream's client, and their encoding as an event's id."""

    __slots__ = ("_check", "_encoded", "_epochs")

    def __init__(self, channels: Sequence[str], positions: Mapping[str, Position]) -> None:
        """`positions`: those from which the client resumes."""
        self._check = _check(channels)
        self._epochs = {channel: position.epoch for channel, position in positions.items()}
        self._encoded = {
            channel: "" if channel not in positions else _encode(positions[channel]) for channel in channels
        }

    def apply(self, moves: Sequence[Move]) -> bool:
        """Applies moves. True if the id has changed."""
        has_changed = False
        for move in moves:
            channel = move.channel
            if channel not in self._encoded:
                continue  # the backend has added it; an id has no place for it
            has_changed = True
            if move.epoch is not None:
                self._epochs[channel] = move.epoch
            epoch = self._epochs.get(channel)
            is_known = move.offset is not None and epoch is not None
            self._encoded[channel] = _encode(Position(epoch or "", move.offset or 0, move.id)) if is_known else ""
        return has_changed

    def encode(self) -> bytes:
        """Returns the id."""
        return f"{self._check}.{','.join(self._encoded.values())}".encode()


def decode(text: str, channels: Sequence[str]) -> Mapping[str, Position]:
    """Returns the positions in an id, by channel. Raises ServiceError(INVALID_REQUEST) if it is no id of these channels."""
    check, _, encoded = text.partition(".")
    parts = encoded.split(",")
    # Everything in an id is percent-encoded, so other characters are not the service's. Some of them cannot be encoded again.
    if not text.isascii() or len(text) > MAX_ID_CHARS or check != _check(channels) or len(parts) != len(channels):
        raise _invalid()
    return {channel: _decode_position(part) for channel, part in zip(channels, parts, strict=True) if part}


def _encode(position: Position) -> str:
    return f"{quote(position.epoch, safe='')}:{position.offset}:{quote(position.id or '', safe='')}"


def _decode_position(part: str) -> Position:
    epoch, _, rest = part.partition(":")
    offset, _, id = rest.partition(":")
    epoch, id = unquote(epoch), unquote(id)
    is_number = len(offset) <= _MAX_DIGITS and offset.isascii() and offset.isdecimal() and int(offset) < 2**53
    if not epoch or not is_number or max(len(epoch), len(id)) > _MAX_PART_CHARS:
        raise _invalid()
    return Position(epoch, int(offset), id or None)


def _check(channels: Sequence[str]) -> str:
    return hashlib.sha256(",".join(channels).encode("utf-8", "surrogatepass")).hexdigest()[:_CHECK_CHARS]


def _invalid() -> ServiceError:
    return ServiceError(
        ErrorCode.INVALID_REQUEST,
        "this is not the id of an event from a stream of the same channels",
        parameter="Last-Event-ID",
    )
