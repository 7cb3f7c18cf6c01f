"""permessage-deflate (RFC 7692) for a server that compresses once for everyone.

No message refers to one before it, in either direction: what `Deflater` makes can go to all connections that agreed on the
same window, and no connection keeps a window of its own. docs/adr/0015-compression.md tells what that costs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

EXTENSION = "permessage-deflate"
MIN_WINDOW_BITS = 9
"""The RFC has 8 too, but zlib makes no raw stream of it."""
MAX_WINDOW_BITS = zlib.MAX_WBITS
MAX_FINAL_BLOCKS = 64
"""Blocks with BFINAL=1 in one message. No sender needs more than one a fragment, and each costs a new decompressor and a copy
of what follows it: without a bound, a message of nothing else would hold the event loop up."""

_FLUSHED = b"\x00\x00\xff\xff"
"""How a flush ends; it is not sent (RFC 7692 §7.2.1)."""
_CLOSING = _FLUSHED + b"\x01\x00\x00\xff\xff"
"""Behind a whole message, this completes its last block, adds an empty final one, and gives nothing."""
_EMPTY = b"\x00"
"""A message of nothing (RFC 7692 §7.2.3.6)."""


class TooBig(Exception):  # noqa: N818  # the name of close code 1009
    """The message would be larger than allowed."""


class Corrupt(Exception):  # noqa: N818  # says what the bytes are
    """The bytes are no message compressed with DEFLATE. The text says what is wrong with them, and quotes none of them."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was agreed with a client. There are eight, made once: they can be compared with `is`, and used as keys."""

    window_bits: int
    """The largest window, as a power of two, that the client keeps for what it is sent: 9 to 15."""
    response: bytes
    """The value of Sec-WebSocket-Extensions in the response."""


def _agreement(window_bits: int, *, asked: bool) -> Agreement:
    # Neither side takes its window over. A server may answer so unasked, for itself (§7.1.1.1) and for the client (§7.1.1.2).
    response = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
    if asked:  # a limit is accepted by repeating it (§7.1.2.1)
        response += f"; server_max_window_bits={window_bits}"
    return Agreement(window_bits, response.encode())


_UNLIMITED = _agreement(MAX_WINDOW_BITS, asked=False)
_LIMITED = {str(bits): _agreement(bits, asked=True) for bits in range(MIN_WINDOW_BITS, MAX_WINDOW_BITS + 1)}
AGREEMENTS = (_UNLIMITED, *_LIMITED.values())
"""All that `negotiate` can return, None apart."""


def negotiate(offers: str | None) -> Agreement | None:
    """Accepts the first offer that can be met, in the Sec-WebSocket-Extensions of a request (lines joined by commas).

    None if there is none, and if the header breaks RFC 6455 §9.1 anywhere; then no extension is used. Never raises, and takes
    time in proportion to the header's length.
    """
    if offers is None or EXTENSION not in offers:
        return None
    try:
        extensions = list(_parse(offers))  # whole, before any of it is believed
    except ValueError:
        return None
    return next((found for name, parameters in extensions if (found := _meet(name, parameters))), None)


_VALUES = frozenset(map(str, range(8, MAX_WINDOW_BITS + 1)))
"""What a window may be offered as: no leading zeros (RFC 7692 §7.1.2)."""


def _meet(name: str, parameters: list[tuple[str, str | None]]) -> Agreement | None:
    """Declines what RFC 7692 §7 says must be: unknown parameters, repeated ones, wrong values, and what zlib cannot do."""
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
                # Needs no answer: without one the client may use any window (§7.1.2.2), and `inflate` takes them all.
                good = value is None or value in _VALUES
            case "server_max_window_bits" if value is not None:
                agreement = _LIMITED.get(value)
                good = agreement is not None
            case _:
                good = False
        if not good:
            return None
    return agreement


# RFC 6455 §9.1; what is quoted is a token as well. The quantifiers are possessive, so that nothing is looked at twice; the last
# one has nothing behind it, and as a possessive one Python 3.11.2 takes a `=` without a value for it.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # no secret: RFC 9110 §5.6.2
_QUOTED = r'"(?:\\?[!#$%&\'*+.^_`|~0-9A-Za-z-])++"'
_SPACE = r"[ \t]*+"
_NAME = re.compile(rf"{_SPACE}({_TOKEN}){_SPACE}")
_PARAMETER = re.compile(rf";{_SPACE}({_TOKEN}){_SPACE}(?:={_SPACE}({_TOKEN}|{_QUOTED}){_SPACE})?")
_COMMA = re.compile(rf"{_SPACE}(?:,|\Z)")


def _parse(header: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Each extension with its parameters, in the header's order. Raises ValueError where the header breaks the grammar."""
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
    """Compresses messages, each for itself: the same bytes go to everyone who agreed on the window.

    One for a process, used by one thread. It holds a compressor (some 256 KiB) for each window in use.
    """

    __slots__ = ("_compressors", "_level")

    def __init__(self, level: int) -> None:
        """`level` is zlib's, from 1 (fast) to 9 (small)."""
        self._level = level
        self._compressors: dict[int, zlib._Compress] = {}

    def deflate(self, payload: bytes, window_bits: int) -> bytes:
        """The payload of a frame with RSV1 (RFC 7692 §7.2.1), for whoever keeps a window of that size or a larger one."""
        if not payload:
            return _EMPTY  # a second flush with nothing before it gives nothing
        # Taken out while it works: if it fails half way, what it still holds of this message never comes into another.
        compressor = self._compressors.pop(window_bits, None) or self._new(window_bits)
        # A full flush also forgets: nothing after it can refer to what was before.
        deflated = compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH)
        self._compressors[window_bits] = compressor
        return deflated[: -len(_FLUSHED)]

    def _new(self, window_bits: int) -> zlib._Compress:
        return zlib.compressobj(self._level, zlib.DEFLATED, -window_bits)


def inflate(data: bytes, most: int) -> bytes:
    """The message whose compressed fragments, joined, are `data` (RFC 7692 §7.2.2), of at most `most` bytes.

    Makes never more than `most` + 1 bytes, whatever `data` would come to. Blocks with BFINAL=1 are taken wherever they stand;
    the octet that the RFC wants behind the last (§7.2.3.4) may be missing, as it is from some senders.

    Raises TooBig above `most`, and Corrupt if `data` is no whole number of DEFLATE blocks.
    """
    try:
        return _inflate(data, most)
    except zlib.error as error:
        raise Corrupt(str(error)) from error


def _inflate(data: bytes, most: int) -> bytes:
    made = b""
    for _ in range(MAX_FINAL_BLOCKS + 1):
        if not data:
            return made
        # A final block does not end the window: what follows may refer to what was before it.
        stream = zlib.decompressobj(-MAX_WINDOW_BITS, zdict=made[-(1 << MAX_WINDOW_BITS) :])
        made += stream.decompress(data, most + 1 - len(made))
        if len(made) > most:
            raise TooBig(f"more than {most} bytes")
        if not stream.eof:
            _check_end(stream)
            return made
        data = stream.unused_data
    raise Corrupt(f"more than {MAX_FINAL_BLOCKS} final blocks")


def _check_end(stream: zlib._Decompress) -> None:
    """Raises Corrupt (or zlib.error) if the stream stands within a block."""
    stream.decompress(_CLOSING, 1)  # what would give more than that has not ended then
    if not stream.eof or stream.unused_data:
        raise Corrupt("ends within a block")
