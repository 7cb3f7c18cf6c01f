"""permessage-deflate (RFC 7692) for a server that compresses each message once for all receivers.

In both directions, no message refers to an earlier one. So all connections with the same window can get the same output of
`Deflater`, and no connection keeps a compression context. docs/adr/0015-compression.md shows what that costs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

EXTENSION = "permessage-deflate"
MIN_WINDOW_BITS = 9
"""The RFC also allows 8, but zlib cannot write such a raw stream."""
MAX_WINDOW_BITS = zlib.MAX_WBITS
MAX_FINAL_BLOCKS = 64
"""Blocks with BFINAL=1 in one message. A sender needs one per fragment. Each needs a new decompressor and a copy of the rest, so
without this limit, a message of such blocks would block the event loop."""

_FLUSHED = b"\x00\x00\xff\xff"
"""The end of a flush, which is not sent (RFC 7692 §7.2.1)."""
_CLOSING = _FLUSHED + b"\x01\x00\x00\xff\xff"
"""Appended to a whole message, this ends its last block, adds an empty final block, and decompresses to nothing."""
_EMPTY = b"\x00"
"""An empty message (RFC 7692 §7.2.3.6)."""


class TooBig(Exception):  # noqa: N818  # the name of close code 1009
    """The message is larger than allowed."""


class Corrupt(Exception):  # noqa: N818  # describes the bytes
    """The bytes are not a message compressed with DEFLATE. The message says why, without quoting them."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The negotiated parameters of a client. There are eight instances, so they can be compared with `is` and used as keys."""

    window_bits: int
    """The largest window of the client for inbound messages, as a power of two: 9 to 15."""
    response: bytes
    """The value of Sec-WebSocket-Extensions in the response."""


def _agreement(window_bits: int, *, asked: bool) -> Agreement:
    # Neither side keeps its context. A server may respond this without an offer, for itself (§7.1.1.1) and for the client
    # (§7.1.1.2).
    response = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
    if asked:  # the server accepts a limit by repeating it (§7.1.2.1)
        response += f"; server_max_window_bits={window_bits}"
    return Agreement(window_bits, response.encode())


_UNLIMITED = _agreement(MAX_WINDOW_BITS, asked=False)
_LIMITED = {str(bits): _agreement(bits, asked=True) for bits in range(MIN_WINDOW_BITS, MAX_WINDOW_BITS + 1)}
AGREEMENTS = (_UNLIMITED, *_LIMITED.values())
"""All agreements that `negotiate` can return."""


def negotiate(offers: str | None) -> Agreement | None:
    """Accepts the first supported offer in a request's Sec-WebSocket-Extensions (lines joined by commas).

    Returns None without one, and for a header that breaks RFC 6455 §9.1. Never raises. Takes time proportional to the header's
    length.
    """
    if offers is None or EXTENSION not in offers:
        return None
    try:
        extensions = list(_parse(offers))  # parses the whole header first, because a fault anywhere refuses it
    except ValueError:
        return None
    return next((found for name, parameters in extensions if (found := _accept(name, parameters))), None)


_VALUES = frozenset(map(str, range(8, MAX_WINDOW_BITS + 1)))
"""Valid values of a window offer: no leading zeros (RFC 7692 §7.1.2)."""


def _accept(name: str, parameters: list[tuple[str, str | None]]) -> Agreement | None:
    """Returns the agreement. None for unknown, repeated or wrong parameters (RFC 7692 §7), and for 8 bits."""
    if name != EXTENSION:
        return None
    given = dict(parameters)
    if len(given) < len(parameters):
        return None
    agreement: Agreement | None = _UNLIMITED
    for parameter, value in parameters:
        match parameter:
            case "server_no_context_takeover" | "client_no_context_takeover":
                good = value is None
            case "client_max_window_bits":
                # Needs no response: without one, the client may use any window (§7.1.2.2), and `inflate` supports all windows.
                good = value is None or value in _VALUES
            case "server_max_window_bits" if value is not None:
                agreement = _LIMITED.get(value)
                good = agreement is not None
            case _:
                good = False
        if not good:
            return None
    return agreement


# RFC 6455 §9.1: quoted values are tokens, too. The quantifiers are possessive, so that matching is linear. The last one is not,
# because Python 3.11.2 would then match a `=` without a value.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # no secret: RFC 9110 §5.6.2
_QUOTED = r'"(?:\\?[!#$%&\'*+.^_`|~0-9A-Za-z-])++"'
_SPACE = r"[ \t]*+"
_NAME = re.compile(rf"{_SPACE}({_TOKEN}){_SPACE}")
_PARAMETER = re.compile(rf";{_SPACE}({_TOKEN}){_SPACE}(?:={_SPACE}({_TOKEN}|{_QUOTED}){_SPACE})?")
_COMMA = re.compile(rf"{_SPACE}(?:,|\Z)")


def _parse(header: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Yields each extension with its parameters. Raises ValueError if the header breaks the grammar."""
    at = 0
    while at < len(header):
        if name := _NAME.match(header, at):
            at = name.end()
            parameters: list[tuple[str, str | None]] = []
            while parameter := _PARAMETER.match(header, at):
                at = parameter.end()
                parameters.append((parameter[1], _unquoted(parameter[2])))
            yield name[1], parameters
        comma = _COMMA.match(header, at)  # lists may have empty elements (RFC 9110 §5.6.1)
        if comma is None:
            raise ValueError("neither the end of an extension nor a parameter")
        at = comma.end()


def _unquoted(value: str | None) -> str | None:
    return value.strip('"').replace("\\", "") if value is not None else None


class Deflater:
    """Compresses messages independently: the same bytes go to every client with the same window.

    A process has one, which one thread uses. It keeps a compressor (about 256 KiB) for each window in use.
    """

    __slots__ = ("_compressors", "_level")

    def __init__(self, level: int) -> None:
        """`level` is zlib's, from 1 (fast) to 9 (small)."""
        self._level = level
        self._compressors: dict[int, zlib._Compress] = {}

    def deflate(self, payload: bytes, window_bits: int) -> bytes:
        """Returns the payload of a frame with RSV1 (RFC 7692 §7.2.1), for clients with this window or a larger one."""
        if not payload:
            return _EMPTY  # zlib returns nothing for a second flush without input
        # The compressor is removed while in use. If it fails, its rest of this message cannot get into another message.
        compressor = self._compressors.pop(window_bits, None) or self._new(window_bits)
        # A full flush resets the window: later messages cannot refer to this one.
        deflated = compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH)
        self._compressors[window_bits] = compressor
        return deflated[: -len(_FLUSHED)]

    def _new(self, window_bits: int) -> zlib._Compress:
        return zlib.compressobj(self._level, zlib.DEFLATED, -window_bits)


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Decompresses a message from its joined fragments (RFC 7692 §7.2.2), of at most `max_bytes`.

    Never allocates more than `max_bytes` + 1 bytes of output. Accepts blocks with BFINAL=1 anywhere. The octet that the RFC
    requires after the last one (§7.2.3.4) may be missing, because some senders omit it.

    Raises TooBig above `max_bytes`, and Corrupt if `data` is not a whole number of DEFLATE blocks.
    """
    try:
        return _inflate(data, max_bytes)
    except zlib.error as error:
        raise Corrupt(str(error)) from error


def _inflate(data: bytes, max_bytes: int) -> bytes:
    output = b""
    for _ in range(MAX_FINAL_BLOCKS + 1):
        if not data:
            return output
        # A final block does not reset the window: later blocks may refer to earlier ones.
        stream = zlib.decompressobj(-MAX_WINDOW_BITS, zdict=output[-(1 << MAX_WINDOW_BITS) :])
        output += stream.decompress(data, max_bytes + 1 - len(output))
        if len(output) > max_bytes:
            raise TooBig(f"more than {max_bytes} bytes")
        if not stream.eof:
            _check_end(stream)
            return output
        data = stream.unused_data
    raise Corrupt(f"more than {MAX_FINAL_BLOCKS} final blocks")


def _check_end(stream: zlib._Decompress) -> None:
    """Raises Corrupt (or zlib.error) if the stream ends within a block."""
    stream.decompress(_CLOSING, 1)  # a stream with more output has not ended
    if not stream.eof or stream.unused_data:
        raise Corrupt("ends within a block")
