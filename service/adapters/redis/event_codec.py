"""How events travel through Redis: what is PUBLISHed and what the stream and the state keep.

A message is `d<epoch> <offset>\n<body>`, `l<epoch> <state version>\n<body>` or `e<body>`; the body is MessagePack.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication

DURABLE, LATEST, EPHEMERAL = b"d"[0], b"l"[0], b"e"[0]
# Members of an Enum are slow to look up.
_DURABLE, _LATEST = Delivery.DURABLE, Delivery.LATEST


class Body(Struct, frozen=True, array_like=True, gc=False):
    """An event without its place."""

    type: str
    id: str
    sender: str | None
    at: int
    key: str | None
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Body).decode


def encode(publication: Publication) -> bytes:
    """The body of a publication."""
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


def ephemeral(publication: Publication) -> bytes:
    """The whole message of an event that enters no stream."""
    return b"e" + encode(publication)


def decode(
    channel: ChannelKey,
    delivery: Delivery,
    body: bytes,
    epoch: str = "",
    offset: int | None = None,
    state_version: int | None = None,
) -> Event:
    """The event with a body. Raises msgspec.MsgspecError for what is none."""
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


def parse(channel: ChannelKey, message: bytes) -> Event:
    """The event in a message. Raises ValueError (msgspec's errors are that) for what is none."""
    kind = message[0] if message else 0
    if kind == EPHEMERAL:
        return decode(channel, Delivery.EPHEMERAL, message[1:])
    head, _, body = message.partition(b"\n")
    epoch, _, place = head.decode("ascii").partition(" ")
    is_durable = kind == DURABLE
    if not is_durable and kind != LATEST:
        raise ValueError("the message is of no known kind")
    found = _decode(body)
    return Event(  # positions cost less than names, and this is done for every message
        channel,
        found.type,
        found.id,
        _DURABLE if is_durable else _LATEST,
        found.data,
        found.sender,
        found.at,
        int(place) if is_durable else None,
        None if is_durable else int(place),
        found.key,
        epoch[1:],
    )
