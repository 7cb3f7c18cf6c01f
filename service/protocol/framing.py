"""Encodes WebSocket frames of a server (RFC 6455 §5): unfragmented, unmasked, shared by all receivers."""

from __future__ import annotations

import hashlib
import struct
from binascii import b2a_base64

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
"""Opcodes (§5.2)."""
FIN, RSV1, MASK = 0x80, 0x40, 0x80
"""Bits of the first byte (FIN, RSV1) and of the second (MASK)."""
MAX_CONTROL = 125
"""Largest payload of a control frame, in bytes (§5.5)."""
PING_FRAME = bytes((FIN | PING, 0))

_head_16_bits = struct.Struct("!BBH").pack
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode: int, payload: bytes, rsv1: int = 0) -> bytes:
    """Encodes a whole message in one frame. `rsv1`: RSV1 if the payload is compressed (RFC 7692 §6), else 0."""
    first, size = FIN | rsv1 | opcode, len(payload)
    if size < 126:
        return b"%c%c%b" % (first, size, payload)
    if size < 65_536:
        return _head_16_bits(first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def payloads(wire: bytes) -> list[bytes]:
    """Returns the payloads of whole frames that `frame` has encoded. They must not be compressed."""
    found: list[bytes] = []
    start = 0
    while start < len(wire):
        size, start = wire[start + 1], start + 2
        if size >= 126:
            digits = 2 if size == 126 else 8
            size, start = int.from_bytes(wire[start : start + digits]), start + digits
        found.append(wire[start : start + size])
        start += size
    return found


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Encodes a close frame, which is empty without a code. A reason that is too long is cut between two characters."""
    if code is None:
        return frame(CLOSE, b"")
    text = reason.encode()[: MAX_CONTROL - 2].decode(errors="ignore").encode()
    return frame(CLOSE, struct.pack("!H", code) + text)


def accept_key(key: bytes) -> bytes:
    """Returns Sec-WebSocket-Accept for a Sec-WebSocket-Key (§4.2.2)."""
    return b2a_base64(hashlib.sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)
