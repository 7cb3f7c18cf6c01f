"""Frames: events encoded once for everyone who gets them, and bursts of them joined once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Raw

from service.core.event import Delivery, Event
from service.protocol import messages

MAX_BURST_BYTES = 65_536
"""Bytes joined into one message, at most (one frame alone may be larger): a client must not wait for megabytes."""


class Frame:
    """One message, encoded. `delivery` is None for replies, which belong to one connection and are never dropped."""

    __slots__ = ("accepted", "delivery", "key", "offset", "ordered", "payload", "rev", "type")

    def __init__(
        self,
        payload: bytes,
        type: str,
        delivery: Delivery | None = None,
        key: tuple[str, str, str] | None = None,
        offset: int | None = None,
        rev: int | None = None,
        accepted: float = 0.0,
        *,
        ordered: bool = False,
    ) -> None:
        self.payload = payload
        self.type = type
        self.delivery = delivery
        self.key = key
        """What a newer frame replaces it by: (channel, type, key)."""
        self.ordered = ordered
        """Whether it goes to the end of the queue when it replaces another, instead of in its place."""
        self.offset = offset
        self.rev = rev
        self.accepted = accepted
        """Monotonic seconds at which this node got the event; for the latency metric."""


def encode_event(event: Event) -> bytes:
    """The event as subscribers see it."""
    return messages.encode(
        messages.Event(
            type=event.type,
            channel=event.channel.name,
            id=event.id,
            at=event.at,
            sender=event.sender,
            data=Raw(event.data),
            offset=event.offset,
            rev=event.rev,
            key=event.key,
        )
    )


def event_frame(event: Event, now: float) -> Frame:
    """Encodes an event. One with a key is replaceable in queues, whatever its class: presence changes are, too.

    Those have no `rev`: the order alone tells whether a user joined or left last, so a second join must not take the place of
    the first, before the leave between them. They are rare (leaves are debounced), so going last is no waiting for ever.
    """
    key = None if event.key is None else (event.channel.name, event.type, event.key)
    delivery = event.delivery if key is None else Delivery.LATEST
    ordered = key is not None and event.rev is None
    return Frame(encode_event(event), event.type, delivery, key, event.offset, event.rev, now, ordered=ordered)


class Burst:
    """Frames of one channel that go out together, joined once for all members."""

    __slots__ = ("frames", "payload")

    def __init__(self, frames: tuple[Frame, ...]) -> None:
        self.frames = frames
        self.payload = join(frames)


def join(frames: Iterable[Frame]) -> bytes:
    """One message holding all: a lone frame as it is, several as a batch."""
    payloads = [frame.payload for frame in frames]
    return payloads[0] if len(payloads) == 1 else b"[" + b",".join(payloads) + b"]"


def bursts(frames: Iterable[Frame], most: int) -> Iterator[Burst]:
    """Cuts frames into bursts of at most `most` frames and MAX_BURST_BYTES."""
    part: list[Frame] = []
    size = 0
    for frame in frames:
        if part and (len(part) >= most or size + len(frame.payload) > MAX_BURST_BYTES):
            yield Burst(tuple(part))
            part, size = [], 0
        part.append(frame)
        size += len(frame.payload)
    if part:
        yield Burst(tuple(part))
