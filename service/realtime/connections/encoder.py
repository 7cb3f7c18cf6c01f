"""Encodes and compresses WebSocket frames, once for all connections that get the same bytes.

Example:
    for batch in split_batches(frames, 100, encoder):
        transport.write(batch.wire(transport.window_bits))
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from service.core.limits import Compression
from service.protocol.deflate import Deflater
from service.protocol.framing import RSV1, TEXT
from service.protocol.framing import frame as framed
from service.realtime.connections.frame import Frame

MAX_BATCH_BYTES = 65_536
"""Bytes of joined frames in one WebSocket message. A larger frame is sent alone."""


class FrameEncoder:
    """Makes WebSocket frames. Compresses a frame if the client negotiated it, and the contract and the size allow it."""

    __slots__ = ("_compression", "_deflater")

    def __init__(self, compression: Compression) -> None:
        self._deflater = Deflater(compression.level) if compression.enabled else None
        self._compression = compression

    def encode(self, frames: Sequence[Frame], window_bits: int) -> bytes:
        """Encodes the frames as one message. `window_bits` has the meaning that it has in `Batch.wire`."""
        payload = join([frame.payload for frame in frames])
        return self.encode_compressed(frames, payload, window_bits) if window_bits else self.encode_plain(payload)

    @staticmethod
    def encode_plain(payload: bytes) -> bytes:
        """Encodes a message without compression."""
        return framed(TEXT, payload)

    def encode_compressed(self, frames: Sequence[Frame], payload: bytes, window_bits: int) -> bytes:
        """Encodes a message with compression, unless it is too small or the contract forbids it for an event in it."""
        deflater = self._deflater
        rules = {frame.compress for frame in frames}
        is_allowed = False not in rules and self._compression.wanted(True if True in rules else None, len(payload))
        if deflater is None or not is_allowed:
            return framed(TEXT, payload)
        return framed(TEXT, deflater.deflate(payload, window_bits), RSV1)


class Batch:
    """Frames of one channel in one message: joined once for all members, and compressed once for each window size."""

    __slots__ = ("_compressed", "_encoder", "frames", "payload", "plain")

    def __init__(self, frames: tuple[Frame, ...], encoder: FrameEncoder, payload: bytes | None = None) -> None:
        """`payload`: the joined frames, if the caller has them."""
        self.frames = frames
        self.payload = join([frame.payload for frame in frames]) if payload is None else payload
        """The message."""
        self.plain = encoder.encode_plain(self.payload)
        """The message as an uncompressed WebSocket frame."""
        self._encoder = encoder
        self._compressed: dict[int, bytes] | None = None

    @property
    def is_compressed(self) -> bool:
        """True if a client has got the message compressed."""
        return self._compressed is not None

    def wire(self, window_bits: int) -> bytes:
        """Returns the message as a WebSocket frame. `window_bits`: of the client's inflate window; 0 without compression."""
        if not window_bits:
            return self.plain
        compressed = self._compressed
        if compressed is None:
            compressed = self._compressed = {}
        wire = compressed.get(window_bits)
        if wire is None:
            wire = compressed[window_bits] = self._encoder.encode_compressed(self.frames, self.payload, window_bits)
        return wire


def join(payloads: Sequence[bytes]) -> bytes:
    """Joins messages into a JSON array. A single message stays as it is."""
    return payloads[0] if len(payloads) == 1 else b"[" + b",".join(payloads) + b"]"


def split_batches(frames: Collection[Frame], max_frames: int, encoder: FrameEncoder) -> list[Batch]:
    """Splits frames into batches of at most `max_frames` frames and MAX_BATCH_BYTES."""
    if 0 < len(frames) <= max_frames:  # as with nearly all flushes
        payload = join([frame.payload for frame in frames])
        if len(payload) <= MAX_BATCH_BYTES or len(frames) == 1:
            return [Batch(tuple(frames), encoder, payload)]
    made: list[Batch] = []
    part: list[Frame] = []
    size = 0
    for frame in frames:
        if part and (len(part) >= max_frames or size + len(frame.payload) > MAX_BATCH_BYTES):
            made.append(Batch(tuple(part), encoder))
            part, size = [], 0
        part.append(frame)
        size += len(frame.payload)
    if part:
        made.append(Batch(tuple(part), encoder))
    return made
