"""Parses WebSocket frames from a client (RFC 6455 §5, RFC 7692 §6). No I/O.

A FrameReader exists only while a connection has an incomplete frame or message: `parse_single_text` handles the usual
case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from sys import getsizeof

# Unmasking in Python would be too slow. The function is in a private module of aiohttp, so its version is pinned, and
# tests/unit/test_ws_frames.py checks it.
from aiohttp._websocket.helpers import websocket_mask

from service.protocol import deflate
from service.protocol.close import CloseCode
from service.protocol.framing import BINARY, CLOSE, CONTINUATION, FIN, MASK, MAX_CONTROL, PING, PONG, RSV1, TEXT

MAX_FRAGMENTS = 1024
"""Frames of one message; more if the largest message in fragments of SMALL_FRAGMENT_BYTES needs more. A limit in bytes
alone would not stop empty frames."""
SMALL_FRAGMENT_BYTES = 64
"""Bytes below which a fragment counts as small: it costs as much to read as a message."""
MIN_FRAME_BYTES = 6
"""Bytes of a client's smallest frame: two bytes of head and a mask."""

_WHOLE_TEXT = FIN | TEXT
"""The first byte of a text message in one frame."""
_MASKED_16_BITS = MASK | 126
"""The second byte of a masked frame with a length of 16 bits."""

Received = tuple[int, "str | bytes"]
"""An opcode and its payload: str for a TEXT message, bytes for all else."""


class ProtocolError(Exception):
    """A violation of the protocol by the client: the connection must be failed with this code (RFC 6455 §7.1.7)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class MessageTooBigError(ProtocolError):
    """A message above the limit of bytes or frames."""

    def __init__(self, maximum: int, unit: str = "bytes") -> None:
        super().__init__(CloseCode.TOO_BIG.code, f"a message has at most {maximum} {unit}")


def parse_single_text(data: bytes, max_bytes: int) -> str | None:
    """The text of `data` if it is exactly one masked, unfragmented, uncompressed text frame, else None.

    Raises ProtocolError(1007) if the text is not UTF-8.
    """
    size = len(data)
    if size < MIN_FRAME_BYTES or data[0] != _WHOLE_TEXT:
        return None
    second = data[1]
    if second == _MASKED_16_BITS:
        if size != (data[2] << 8 | data[3]) + 8 or size < 126 + 8:
            return None
        start = 8
    elif second < _MASKED_16_BITS and size == second - MASK + 6:
        start = 6
    else:
        return None
    if size - start > max_bytes:
        return None
    payload = bytearray(data[start:])
    websocket_mask(data[start - 4 : start], payload)
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


class FrameReader:
    """Turns received bytes into whole messages and control frames.

    `max_bytes`: the limit of a message, before and after inflating. `inflates`: whether compression was negotiated.
    """

    __slots__ = (
        "_buffer",
        "_fragments",
        "_inflates",
        "_is_deflated",
        "_max_bytes",
        "_message",
        "_opcode",
        "accounted_bytes",
        "discards_messages",
        "is_scheduled",
        "may_have_more",
        "missing_bytes",
        "small_fragments",
    )

    def __init__(self, max_bytes: int, *, inflates: bool) -> None:
        self._max_bytes = max_bytes
        self._inflates = inflates
        self._buffer = bytearray()
        self._opcode: int | None = None
        """The opcode of the unfinished message; None if there is none."""
        self._message = bytearray()
        self._fragments = 0
        self._is_deflated = False
        self.discards_messages = False
        """Whether data frames are discarded without joining or inflating them, after a close frame was sent."""
        self.may_have_more = False
        """Whether the last `feed` stopped at `max_frames` and may have whole frames left."""
        self.is_scheduled = False
        """Set by the connection: whether it waits in the ReadScheduler."""
        self.accounted_bytes = 0
        """Set by the connection: how many of `held_bytes` it has counted on its account."""
        self.missing_bytes = 0
        """Bytes of the current frame that have not arrived, once its head is known."""
        self.small_fragments = 0
        """Small fragments since the connection last reset this."""

    @property
    def held_bytes(self) -> int:
        """Memory of the buffered bytes; a buffer that grows in steps takes more than its length."""
        return getsizeof(self._buffer) + getsizeof(self._message) if self._buffer or self._message else 0

    @property
    def is_idle(self) -> bool:
        """Whether no frame and no message is unfinished."""
        return not self._buffer and self._opcode is None

    def feed(self, data: bytes, max_frames: int = sys.maxsize) -> Iterator[Received]:
        """Adds bytes and yields the whole messages and control frames, of at most `max_frames` frames.

        Raises ProtocolError, after which the stream cannot be parsed any further. If the caller stops iterating, or at
        `max_frames`, the rest stays in the buffer, masked and compressed, for the next call.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        self.may_have_more = False
        try:
            while True:
                if max_frames <= 0:
                    self.may_have_more = len(buffer) - start >= MIN_FRAME_BYTES
                    return
                max_frames -= 1
                if (frame := self._parse_frame(buffer, start)) is None:
                    return
                first, payload, start = frame
                if first & 0x08:
                    yield first & 0x0F, bytes(payload)
                else:
                    message = self._add_frame(first, payload)
                    if message is not None:
                        yield message
        finally:
            del buffer[:start]

    def _parse_frame(self, buffer: bytearray, start: int) -> tuple[int, bytearray, int] | None:
        """The frame at `start`: first byte, unmasked payload and end; None if it is incomplete. Raises as soon as its
        head shows a fault."""
        left = len(buffer) - start
        self.missing_bytes = 0
        if left < 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        size = second & 0x7F
        self._check_head(first, second, size)
        head = start + 2
        if size == 126:
            if left < 4:
                return None
            size = int.from_bytes(buffer[head : head + 2], "big")
            head += 2
            _check_shortest_length(size, 126)
        elif size == 127:
            if left < 10:
                return None
            size = int.from_bytes(buffer[head : head + 8], "big")
            head += 8
            _check_shortest_length(size, 1 << 16)
        end = head + 4 + size
        missing_bytes = end - len(buffer)
        if missing_bytes > 0:
            self.missing_bytes = missing_bytes
        if not first & 0x08 and len(self._message) + size > self._max_wire_bytes(first):
            raise MessageTooBigError(self._max_bytes)
        if missing_bytes > 0:
            return None
        payload = buffer[head + 4 : end]
        websocket_mask(bytes(buffer[head : head + 4]), payload)
        return first, payload, end

    def _max_wire_bytes(self, first: int) -> int:
        """The limit of the message's bytes on the wire: compression can enlarge incompressible data slightly."""
        deflated = self._is_deflated if first & 0x0F == CONTINUATION else first & RSV1
        return self._max_bytes + self._max_bytes // 8 + 64 if deflated else self._max_bytes

    def _check_head(self, first: int, second: int, size: int) -> None:
        opcode = first & 0x0F
        if not second & MASK:
            raise _violation("a client must mask its frames (RFC 6455 section 5.1)")
        if opcode & 0x08:
            if opcode not in (CLOSE, PING, PONG):
                raise _violation(f"unknown opcode {opcode}")
            if not first & FIN or size > MAX_CONTROL or first & 0x70:
                raise _violation(
                    "a control frame must be unfragmented, without reserved bits, and have at most 125 bytes"
                )
            return
        if opcode not in (CONTINUATION, TEXT, BINARY):
            raise _violation(f"unknown opcode {opcode}")
        if first & 0x30 or (first & RSV1 and not (self._inflates and opcode != CONTINUATION)):
            raise _violation("a reserved bit is set without a negotiated extension")
        if (opcode == CONTINUATION) != (self._opcode is not None):
            raise _violation(
                "continuation frames must continue a fragmented message, and no other data frame may interrupt it"
            )

    def _add_frame(self, first: int, payload: bytearray) -> Received | None:
        if self.discards_messages:
            self._opcode = None if first & FIN else self._opcode or first & 0x0F
            self._message = bytearray()
            return None
        if self._opcode is None:
            self._opcode, self._is_deflated, self._fragments = first & 0x0F, bool(first & RSV1), 0
            self._message = payload
        else:
            self._message += payload
        self._fragments += 1
        if len(payload) < SMALL_FRAGMENT_BYTES and not (self._fragments == 1 and first & FIN):
            self.small_fragments += 1
        if not first & FIN:
            if self._fragments >= (max_frames := max(MAX_FRAGMENTS, self._max_bytes // SMALL_FRAGMENT_BYTES)):
                raise MessageTooBigError(max_frames, "frames")
            return None
        opcode, message = self._opcode, self._message
        self._opcode, self._message = None, bytearray()
        whole = self._inflate(message) if self._is_deflated else message
        return (opcode, _decode_text(whole)) if opcode == TEXT else (opcode, bytes(whole))

    def _inflate(self, message: bytearray) -> bytes:
        try:
            return deflate.inflate(bytes(message), self._max_bytes)
        except deflate.TooBig:
            raise MessageTooBigError(self._max_bytes) from None
        except deflate.Corrupt:
            raise ProtocolError(
                CloseCode.INVALID_UTF8.code, "the message is not valid deflate data (RFC 7692)"
            ) from None


def parse_close(payload: bytes) -> tuple[int | None, str]:
    """Code and reason of a close frame; (None, "") if it has no payload. Raises ProtocolError as RFC 6455 §5.5.1 and
    §7.4 require."""
    if not payload:
        return None, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, 1005, 1006):
        raise _violation("a close frame must have a valid code, or no payload")
    return code, _decode_text(payload[2:])


def _check_shortest_length(size: int, minimum: int) -> None:
    if size < minimum:
        raise _violation("a payload length must use as few bytes as possible (RFC 6455 section 5.2)")


def _decode_text(payload: bytes | bytearray) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> ProtocolError:
    return ProtocolError(CloseCode.INVALID_UTF8.code, "text must be UTF-8")


def _violation(reason: str) -> ProtocolError:
    return ProtocolError(CloseCode.PROTOCOL_VIOLATION.code, reason)
