"""Frames: events encoded once for everyone who gets them, and bursts of them joined once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Raw

from service.core.broker import Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.core.limits import Compression
from service.protocol import messages
from service.protocol.deflate import Deflater
from service.protocol.framing import RSV1, TEXT
from service.protocol.framing import frame as framed

MAX_BATCH_BYTES = 65_536
"""Bytes joined into one message, at most (one frame alone may be larger): a client must not wait for megabytes."""


class Frame:
    """One message, encoded. `delivery` is None for replies, which belong to one connection and are never dropped."""

    __slots__ = (
        "accepted",
        "compress",
        "delivery",
        "epoch",
        "key",
        "offset",
        "ordered",
        "payload",
        "restarts",
        "state_version",
        "type",
    )

    def __init__(
        self,
        payload: bytes,
        type: str,
        delivery: Delivery | None = None,
        key: tuple[str, str, str] | None = None,
        offset: int | None = None,
        state_version: int | None = None,
        accepted: float = 0.0,
        *,
        epoch: str = "",
        ordered: bool = False,
        restarts: bool = False,
        compress: bool | None = None,
    ) -> None:
        self.payload = payload
        self.type = type
        self.delivery = delivery
        self.key = key
        """What a newer frame replaces it by: (channel, type, key)."""
        self.ordered = ordered
        """Whether it goes to the end of the queue when it replaces another, instead of in its place."""
        self.offset = offset
        self.state_version = state_version
        self.epoch = epoch
        """The stream epoch of `offset` and `state_version`."""
        self.restarts = restarts
        """Whether it tells that the stream goes on from (epoch, offset, state_version), whatever came before."""
        self.compress = compress
        """What the contract says to compressing it; None: that its size decides."""
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
            rev=event.state_version,
            key=event.key,
        )
    )


def event_frame(event: Event, now: float, compress: bool | None = None) -> Frame:
    """Encodes an event. One with a key is replaceable in queues, whatever its class: presence changes are, too.

    Presence changes have no `state_version`: only their order tells whether a user joined or left last. So a second join must
    not take the place of the first, before the leave between them. They are rare, as leaves are debounced.
    """
    key = None if event.key is None else (event.channel.name, event.type, event.key)
    delivery = event.delivery if key is None else Delivery.LATEST
    ordered = key is not None and event.state_version is None
    return Frame(
        encode_event(event),
        event.type,
        delivery,
        key,
        event.offset,
        event.state_version,
        now,
        epoch=event.epoch,
        ordered=ordered,
        compress=compress,
    )


def restart_frame(channel: ChannelKey, snapshot: Snapshot, now: float, *, lost: bool) -> Frame:
    """A `subscribed` in place: the subscription goes on, from a stream that could not be joined to what came before.

    `lost`: whether durable events may be missing, so that clients are told `recovered: false`.
    """
    message = messages.Subscribed(
        id=None,
        channel=channel.name,
        epoch=snapshot.position.epoch,
        offset=snapshot.position.offset,
        last=snapshot.position.id,
        recovered=False if lost else None,
        events=[],
        state=[Raw(encode_event(event)) for event in snapshot.state],
    )
    mark = snapshot.head
    return Frame(
        messages.encode(message),
        "subscribed",
        None,
        None,
        mark.offset,
        mark.state_version,
        now,
        epoch=mark.epoch,
        restarts=True,
        compress=False,
    )


class SnapshotFilter:
    """What one subscriber has been given already: the snapshot in its `subscribed`, which may be ahead of its room."""

    __slots__ = ("_mark",)

    def __init__(self, mark: StreamHead) -> None:
        self._mark = mark

    @property
    def mark(self) -> StreamHead:
        """How far the subscriber has come."""
        return self._mark

    def reach(self, frame: Frame) -> None:
        """Takes note of a frame that has passed."""
        epoch, offset, state_version = self._mark
        self._mark = StreamHead(epoch, max(offset, frame.offset or 0), max(state_version, frame.state_version or 0))

    def passes(self, frame: Frame) -> bool:
        """Whether the frame is news to the subscriber. Frames must be asked about in the order of the room."""
        epoch, offset, state_version = self._mark
        if frame.restarts:
            if frame.epoch == epoch and (frame.offset or 0) <= offset and (frame.state_version or 0) <= state_version:
                return False
            self._mark = StreamHead(frame.epoch, frame.offset or 0, frame.state_version or 0)
            return True
        if frame.offset is not None:
            return frame.epoch == epoch and frame.offset > offset
        if frame.state_version is not None:
            return frame.epoch == epoch and frame.state_version > state_version
        return True


class FrameEncoder:
    """Makes WebSocket frames of messages: deflated for whoever takes that, where it is worth it."""

    __slots__ = ("_compression", "_deflater")

    def __init__(self, compression: Compression) -> None:
        self._deflater = Deflater(compression.level) if compression.enabled else None
        self._compression = compression

    def wire(self, frames: Sequence[Frame], window_bits: int) -> bytes:
        """The frames as one message, for a peer that takes deflated frames of this window (0: takes none)."""
        return self.plain(join(frames)) if not window_bits else self.deflated(frames, join(frames), window_bits)

    @staticmethod
    def plain(payload: bytes) -> bytes:
        """As it is."""
        return framed(TEXT, payload)

    def deflated(self, frames: Sequence[Frame], payload: bytes, window_bits: int) -> bytes:
        """Deflated, unless it is too small or the contract says of an event in it that it must not be."""
        deflater = self._deflater
        asked = {frame.compress for frame in frames}
        wanted = False not in asked and self._compression.wanted(True if True in asked else None, len(payload))
        if deflater is None or not wanted:
            return framed(TEXT, payload)
        return framed(TEXT, deflater.deflate(payload, window_bits), RSV1)


class Batch:
    """Frames of one channel that go out together: joined once for all members, and deflated once for each window."""

    __slots__ = ("_deflated", "_encoder", "frames", "payload", "plain")

    def __init__(self, frames: tuple[Frame, ...], encoder: FrameEncoder) -> None:
        self.frames = frames
        self.payload = join(frames)
        """The message."""
        self.plain = encoder.plain(self.payload)
        """The message as a WebSocket frame."""
        self._encoder = encoder
        self._deflated: dict[int, bytes] | None = None

    def wire(self, window_bits: int) -> bytes:
        """The message as a WebSocket frame for a peer that takes deflated frames of this window (0: takes none)."""
        if not window_bits:
            return self.plain
        made = self._deflated
        if made is None:
            made = self._deflated = {}
        wire = made.get(window_bits)
        if wire is None:
            wire = made[window_bits] = self._encoder.deflated(self.frames, self.payload, window_bits)
        return wire


def join(messages: Iterable[Frame] | Iterable[bytes]) -> bytes:
    """One message holding all: a lone one as it is, several as a batch."""
    payloads = [message.payload if isinstance(message, Frame) else message for message in messages]
    return payloads[0] if len(payloads) == 1 else b"[" + b",".join(payloads) + b"]"


def batches(frames: Iterable[Frame], most: int, encoder: FrameEncoder) -> Iterator[Batch]:
    """Cuts frames into bursts of at most `most` frames and MAX_BURST_BYTES."""
    part: list[Frame] = []
    size = 0
    for frame in frames:
        if part and (len(part) >= most or size + len(frame.payload) > MAX_BATCH_BYTES):
            yield Batch(tuple(part), encoder)
            part, size = [], 0
        part.append(frame)
        size += len(frame.payload)
    if part:
        yield Batch(tuple(part), encoder)
