"""Reading WebSocket frames as a server must (RFC 6455 §5, RFC 7692 §6). No I/O.

A reader exists only while a connection has part of a frame or of a message: what comes whole is read by `whole_text`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from sys import getsizeof

# The one part of it that must not be Python: bytes against a mask of four. In a private module, hence pinned, and held by
# tests/unit/test_ws_frames.py.
from aiohttp._websocket.helpers import websocket_mask

from service.protocol import deflate
from service.protocol.close import CloseCode
from service.protocol.framing import BINARY, CLOSE, CONTINUATION, FIN, MASK, MAX_CONTROL, PING, PONG, RSV1, TEXT

MAX_FRAGMENTS = 1024
"""Frames of one message, at most, where its bound in bytes would not need more for fragments of FRAGMENT bytes. Empty ones add
no bytes, so that the bound on bytes alone would never end them."""
FRAGMENT = 64
"""Bytes; the size from which on a message may be cut into fragments, however large messages may be."""
MIN_FRAME = 6
"""Bytes of the smallest frame of a client: its head and its mask."""

Received = tuple[int, "str | bytes"]
"""An opcode, and its payload: text of a TEXT message, bytes of every other."""


class Fault(Exception):  # noqa: N818  # a client's fault, not ours
    """The client has broken the protocol: the connection must be failed with this code (RFC 6455 §7.1.7)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class TooBig(Fault):
    """A message above the bound."""

    def __init__(self, most: int, of: str = "bytes") -> None:
        super().__init__(CloseCode.TOO_BIG.code, f"a message has at most {most} {of}")


def whole_text(data: bytes, most: int) -> str | None:
    """The text of `data` if that is exactly one masked, unfragmented, plain text frame, as nearly all are; else None.

    Raises Fault(1007) if it is no UTF-8.
    """
    size = len(data)
    if size < 6 or data[0] != FIN | TEXT:
        return None
    said = data[1]
    if size == said - MASK + 6 and said - MASK < 126:
        start = 6
    elif said == MASK | 126 and size == (data[2] << 8 | data[3]) + 8 and size >= 126 + 8:
        start = 8
    else:
        return None
    if size - start > most:
        return None
    payload = bytearray(data[start:])
    websocket_mask(data[start - 4 : start], payload)
    return _text(payload)


class FrameReader:
    """Takes bytes as they come, gives whole messages and control frames.

    `most`: bytes of a message, also after inflating. `inflates`: whether the client may deflate.
    """

    __slots__ = (
        "_buffer",
        "_deflated",
        "_fragments",
        "_inflates",
        "_message",
        "_most",
        "_opcode",
        "counted",
        "is_cut_short",
        "is_deaf",
        "is_scheduled",
        "missing",
        "small_fragments",
    )

    def __init__(self, most: int, *, inflates: bool) -> None:
        self._most = most
        self._inflates = inflates
        self._buffer = bytearray()
        self._opcode: int | None = None
        """Of the message whose fragments are coming."""
        self._message = bytearray()
        self._fragments = 0
        self._deflated = False
        self.is_deaf = False
        """Whether messages are passed over, neither put together nor inflated: control frames alone count."""
        self.is_cut_short = False
        """Whether the last `feed` stopped at its bound on frames: there may be more that are whole."""
        self.is_scheduled = False
        """For the connection: whether it waits for its turn to read on."""
        self.counted = 0
        """For the connection: bytes kept here that it has counted."""
        self.missing = 0
        """Bytes that are still to come of a frame whose head is known."""
        self.small_fragments = 0
        """Fragments below FRAGMENT bytes so far: each costs as much as a message and brings next to nothing."""

    @property
    def held(self) -> int:
        """Bytes that are kept here, as they lie in memory: what grows by parts takes more than its length."""
        return getsizeof(self._buffer) + getsizeof(self._message) if self._buffer or self._message else 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing has begun that has not ended."""
        return not self._buffer and self._opcode is None

    def feed(self, data: bytes, most_frames: int = sys.maxsize) -> Iterator[Received]:
        """Takes bytes; gives, in order, what is whole now, of at most so many frames, fragments too.

        Raises Fault; nothing that comes after can be understood then. Whoever stops asking leaves the rest as it came, neither
        unmasked nor inflated, as does the bound: the next call goes on with it.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        self.is_cut_short = False
        try:
            while True:
                if most_frames <= 0:
                    self.is_cut_short = len(buffer) - start >= MIN_FRAME
                    return
                most_frames -= 1
                if (found := self._frame(buffer, start)) is None:
                    return
                first, payload, start = found
                if first & 0x08:
                    yield first & 0x0F, bytes(payload)
                else:
                    message = self._add(first, payload)
                    if message is not None:
                        yield message
        finally:
            del buffer[:start]

    def _frame(self, buffer: bytearray, start: int) -> tuple[int, bytearray, int] | None:
        """The frame at `start`: its first byte, its payload and its end; None if it is not whole. Refuses it by its head."""
        left = len(buffer) - start
        self.missing = 0
        if left < 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        size = second & 0x7F
        self._check(first, second, size)
        head = start + 2
        if size == 126:
            if left < 4:
                return None
            size = int.from_bytes(buffer[head : head + 2], "big")
            head += 2
            _check_minimal(size, 126)
        elif size == 127:
            if left < 10:
                return None
            size = int.from_bytes(buffer[head : head + 8], "big")
            head += 8
            _check_minimal(size, 1 << 16)
        end = head + 4 + size
        missing = end - len(buffer)
        if missing > 0:
            self.missing = missing
        if not first & 0x08 and len(self._message) + size > self._most_sent(first):
            raise TooBig(self._most)
        if missing > 0:
            return None
        payload = buffer[head + 4 : end]
        websocket_mask(bytes(buffer[head : head + 4]), payload)
        return first, payload, end

    def _most_sent(self, first: int) -> int:
        """Bytes of the message with this frame, as it is sent: deflating makes what cannot be made smaller a little larger."""
        deflated = self._deflated if first & 0x0F == CONTINUATION else first & RSV1
        return self._most + self._most // 8 + 64 if deflated else self._most

    def _check(self, first: int, second: int, size: int) -> None:
        opcode = first & 0x0F
        if not second & MASK:
            raise _broken("a client masks its frames (RFC 6455 section 5.1)")
        if opcode & 0x08:
            if opcode not in (CLOSE, PING, PONG):
                raise _broken(f"there is no opcode {opcode}")
            if not first & FIN or size > MAX_CONTROL or first & 0x70:
                raise _broken("a control frame is not fragmented, has at most 125 bytes and no reserved bit")
            return
        if opcode not in (CONTINUATION, TEXT, BINARY):
            raise _broken(f"there is no opcode {opcode}")
        if first & 0x30 or (first & RSV1 and not (self._inflates and opcode != CONTINUATION)):
            raise _broken("a reserved bit is set that nothing was agreed on")
        if (opcode == CONTINUATION) != (self._opcode is not None):
            raise _broken("a message begins with its opcode, and goes on with continuations alone")

    def _add(self, first: int, payload: bytearray) -> Received | None:
        if self.is_deaf:
            self._opcode = None if first & FIN else self._opcode or first & 0x0F
            self._message = bytearray()
            return None
        if self._opcode is None:
            self._opcode, self._deflated, self._fragments = first & 0x0F, bool(first & RSV1), 0
            self._message = payload
        else:
            self._message += payload
        self._fragments += 1
        if len(payload) < FRAGMENT and not (self._fragments == 1 and first & FIN):
            self.small_fragments += 1
        if not first & FIN:
            if self._fragments >= (most := max(MAX_FRAGMENTS, self._most // FRAGMENT)):
                raise TooBig(most, "frames")
            return None
        opcode, message = self._opcode, self._message
        self._opcode, self._message = None, bytearray()
        whole = self._inflated(message) if self._deflated else message
        return (opcode, _text(whole)) if opcode == TEXT else (opcode, bytes(whole))

    def _inflated(self, message: bytearray) -> bytes:
        try:
            return deflate.inflate(bytes(message), self._most)
        except deflate.TooBig:
            raise TooBig(self._most) from None
        except deflate.Corrupt:
            raise Fault(CloseCode.INVALID_UTF8.code, "the message is not deflated as RFC 7692 has it") from None


def closing(payload: bytes) -> tuple[int | None, str]:
    """Code and reason of a close frame; None where it has none. Raises Fault if it is not as RFC 6455 §5.5.1 and §7.4 have it."""
    if not payload:
        return None, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, 1005, 1006):
        raise _broken("a close frame has a code that may be sent, or nothing")
    return code, _text(payload[2:])


def _check_minimal(size: int, least: int) -> None:
    if size < least:
        raise _broken("a length is said in as few bytes as it takes (RFC 6455 section 5.2)")


def _text(payload: bytes | bytearray) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        raise Fault(CloseCode.INVALID_UTF8.code, "text is UTF-8") from None


def _broken(reason: str) -> Fault:
    return Fault(CloseCode.PROTOCOL_VIOLATION.code, reason)
