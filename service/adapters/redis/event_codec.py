"""Encodes events for Redis: for PUBLISH, the stream and the state.

A message is `d<epoch> <offset>\n<body>`, `l<epoch> <state version>\n<body>` or `e<body>`; the body is MessagePack.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication

DURABLE, LATEST, EPHEMERAL = b"d"[0], b"l"[0], b"e"[0]
_DURABLE, _LATEST = Delivery.DURABLE, Delivery.LATEST  # members of an Enum are slow to look up


class Body(Struct, frozen=True, array_like=True, gc=False):
    """An event without its epoch, offset and state version."""

    type: str
    id: str
    sender: str | None
    at: int
    key: str | None
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Body).decode


def encode_body(publication: Publication) -> bytes:
    """Returns the body of a publication."""
    return _encode(
        Body(
            publication.type,
            publication.id,
            publication.sender,
            publication.at,
            publication.key,
            publication.data,
        )
    )


def encode_ephemeral(publication: Publication) -> bytes:
    """Returns the message of an ephemeral event."""
    return b"e" + encode_body(publication)


def decode_body(
    channel: ChannelKey,
    delivery: Delivery,
    body: bytes,
    epoch: str = "",
    offset: int | None = None,
    state_version: int | None = None,
) -> Event:
    """Returns the event of a body. Raises msgspec.MsgspecError for a body of another kind."""
    found = _decode(body)
    return Event(
        channel,
        found.type,
        found.id,
        delivery,
        found.data,
        found.sender,
        found.at,
        offset,
        state_version,
        found.key,
        epoch,
    )


def decode_message(channel: ChannelKey, message: bytes) -> Event:
    """Returns the event of a message. Raises ValueError (msgspec's errors are that) for a message of another kind."""
    kind = message[0] if message else 0
    if kind == EPHEMERAL:
        return decode_body(channel, Delivery.EPHEMERAL, message[1:])
    head, _, body = message.partition(b"\n")
    epoch, _, number = head.decode("ascii").partition(" ")
    is_durable = kind == DURABLE
    if not is_durable and kind != LATEST:
        raise ValueError("the message is of no known kind")
    found = _decode(body)
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
    )
