"""Encodes events for Redis: for PUBLISH, the stream and the state.

A message is `d<epoch> <offset>\n<body>`, `l<epoch> <state version>\n<body>` or `e<body>`; the body is MessagePack.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from service.core.channel import ChannelKey
from service.core.event import REMOVED_VALUE_TYPE, Delivery, Event, Publication

DURABLE, LATEST, EPHEMERAL = b"d"[0], b"l"[0], b"e"[0]
_DURABLE, _LATEST, _EPHEMERAL = (
    Delivery.DURABLE,
    Delivery.LATEST,
    Delivery.EPHEMERAL,
)  # members of an Enum are slow to look up


class Body(Struct, frozen=True, array_like=True, gc=False):
    """An event without its epoch, offset and state version."""

    type: str
    id: str
    sender: str | None
    at: int
    key: str | None
    data: bytes


class EndingBody(Body, frozen=True, array_like=True, gc=False):
    """The body of a value with a TTL. Older versions ignore its last element."""

    ttl: str = ""
    """Milliseconds after which the value ends, as TTL_DIGITS digits: lua/values.lua reads the end of the body, because Redis'
    cmsgpack cannot read `data`."""


class RemovalBody(EndingBody, frozen=True, array_like=True, gc=False):
    """The body of a removal. Older versions take it for a value of the type REMOVED_VALUE_TYPE, which no state holds."""

    removes: str = ""
    """The type of the removed value."""


class ExcludingBody(RemovalBody, frozen=True, array_like=True, gc=False):
    """The body of an event that a connection does not get. Older versions ignore its last elements.

    If the event has a TTL too, lua/values.lua finds the TTL before a last element of CONNECTION_ID_CHARS characters.
    """

    exclude: str = ""
    """The id of the connection."""


TTL_DIGITS = 11


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ExcludingBody).decode


def encode_body(event: Publication | Event) -> bytes:
    """Returns the body of an event, also of one that is not accepted yet."""
    type_, id_, sender, at = event.type, event.id, event.sender, event.at
    if event.removed:
        data = msgspec.json.encode({"type": type_})
        return _encode(RemovalBody(REMOVED_VALUE_TYPE, id_, sender, at, event.key, data, "", type_))
    if event.ttl is None and event.exclude is None:
        return _encode(Body(type_, id_, sender, at, event.key, event.data))
    ttl = "" if event.ttl is None else f"{event.ttl:0{TTL_DIGITS}d}"
    if event.exclude is None:
        return _encode(EndingBody(type_, id_, sender, at, event.key, event.data, ttl))
    return _encode(ExcludingBody(type_, id_, sender, at, event.key, event.data, ttl, "", event.exclude))


def encode_ephemeral(publication: Publication) -> bytes:
    """Returns the message of an ephemeral event."""
    return b"e" + encode_body(publication)


def decode_stored(channel: ChannelKey, body: bytes, epoch: str, offset: int) -> Event:
    """Returns the durable event of a body. Raises msgspec.MsgspecError for a body of another kind."""
    found = _decode(body)
    return Event(
        channel,
        found.type,
        found.id,
        _DURABLE,
        found.data,
        found.sender,
        found.at,
        offset,
        None,
        found.key,
        epoch,
        None,
        False,
        found.exclude or None,
    )


def decode_value(channel: ChannelKey, value: bytes, epoch: str, now: int) -> Event | None:
    """Returns the event of a value of the state; None if its own TTL has passed. `now`: the server's time in ms.

    Raises ValueError (msgspec's errors are that) for a value of another kind.
    """
    head, _, body = value.partition(b"\n")
    version, _, accepted = head.partition(b" ")
    found = _decode(body)
    ttl: int | None = None
    if found.ttl:
        ttl = int(accepted) + int(found.ttl) - now
        if ttl <= 0:
            return None
    return Event(
        channel,
        found.type,
        found.id,
        _LATEST,
        found.data,
        found.sender,
        found.at,
        None,
        int(version),
        found.key,
        epoch,
        ttl,
        False,
        found.exclude or None,
    )


def decode_message(channel: ChannelKey, message: bytes) -> Event:
    """Returns the event of a message. Raises ValueError (msgspec's errors are that) for a message of another kind."""
    kind = message[0] if message else 0
    if kind == EPHEMERAL:
        found = _decode(message[1:])
        return Event(
            channel,
            found.type,
            found.id,
            _EPHEMERAL,
            found.data,
            found.sender,
            found.at,
            None,
            None,
            found.key,
            "",
            None,
            False,
            found.exclude or None,
        )
    head, _, body = message.partition(b"\n")
    epoch, _, number = head.decode("ascii").partition(" ")
    found = _decode(body)
    if found.removes:
        return _removal(channel, found, epoch[1:], int(number))
    is_durable = kind == DURABLE
    if not is_durable and kind != LATEST:
        raise ValueError("the message is of no known kind")
    return Event(  # positional: keywords cost more, and this runs for every message
        channel,
        found.type,
        found.id,
        _DURABLE if is_durable else _LATEST,
        found.data,
        found.sender,
        found.at,
        int(number) if is_durable else None,
        None if is_durable else int(number),
        found.key,
        epoch[1:],
        int(found.ttl) if found.ttl else None,
        False,
        found.exclude or None,
    )


def decode_removal(channel: ChannelKey, entry: bytes) -> Event:
    """Returns the event of a kept removal: "epoch version\\n" and its body. Raises ValueError for an entry of another kind."""
    head, _, body = entry.partition(b"\n")
    epoch, version = head.decode("ascii").split(" ")
    return _removal(channel, _decode(body), epoch, int(version))


def _removal(channel: ChannelKey, body: RemovalBody, epoch: str, version: int) -> Event:
    return Event(
        channel,
        body.removes,
        body.id,
        _LATEST,
        b"",
        body.sender,
        body.at,
        None,
        version,
        body.key,
        epoch,
        removed=True,
    )
