"""WebSocket frames: made and deflated once for all connections that take the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from service.core.limits import Compression
from service.protocol.deflate import Deflater
from service.protocol.framing import RSV1, TEXT
from service.protocol.framing import frame as framed
from service.realtime.connections.frame import Frame

MAX_BATCH_BYTES = 65_536
"""Bytes joined into one message, at most (one frame alone may be larger): a client must not wait for megabytes."""


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
