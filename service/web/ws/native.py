"""The service's code in C (native.c): sends one frame to many sockets in one call, and parses the heads of upgrades.

Optional: hatch_build.py compiles native.c where there is a compiler. Without it, each delivery calls the transport in
Python, and a regular expression parses the heads. Decisions and measurements: docs/adr/0019-native-send.md,
docs/adr/0040-the-way-in.md.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aiohttp import hdrs

from service.core.authority import parse_authority
from service.web.http.header_list import PlainHeaders
from service.web.http.plain_request import PlainRequest

LIBRARY = Path(__file__).with_name("_native.so")
"""The path that the build writes."""
_ALL_SENT: tuple[tuple[int, int], ...] = ()


class NativeSender:
    """A BatchSender in C. It can release the interpreter lock, because the frame is immutable and the array is its
    own."""

    __slots__ = ("_send_each",)

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises AttributeError if the library has no `tidewire_send_each`."""
        self._send_each = library.tidewire_send_each
        self._send_each.restype = ctypes.c_int
        self._send_each.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        """Sends the frame to each descriptor without blocking. Returns (index, bytes sent) of the incomplete sends."""
        results = array("i", fds)
        if not self._send_each(results.buffer_info()[0], len(results), frame, len(frame)):
            return _ALL_SENT
        return [(index, sent) for index, sent in enumerate(results) if sent >= 0]


_MAX_PARSED = 8_400
"""Bytes that the parser may write: MAX_OUT of native.c."""


class NativeParser:
    """`parse_plain_upgrade` in C: accepts the same heads, and returns the fields that this service reads."""

    __slots__ = ("_parse", "_parsed", "_place")

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises AttributeError if the library has no `tidewire_parse_handshake`."""
        self._parse = library.tidewire_parse_handshake
        self._parse.restype = ctypes.c_size_t
        self._parse.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
        self._parsed = bytearray(_MAX_PARSED)
        """What the parser has written last. Only the thread of one event loop may call it."""
        self._place = ctypes.c_void_p(ctypes.addressof((ctypes.c_char * _MAX_PARSED).from_buffer(self._parsed)))

    def __call__(self, head: bytes, remote: str | None) -> PlainRequest | None:
        """Returns the request of a head, or None, as `parse_plain_upgrade` does."""
        size = self._parse(head, len(head), self._place)
        if not size:
            return None
        lines = self._parsed[:size].decode().split("\n")
        headers = PlainHeaders(zip(lines[2::2], lines[3::2]))  # noqa: B905  # the last line is empty
        if parse_authority(headers[hdrs.HOST]) is None:
            return None
        return PlainRequest(lines[1], headers, remote, lines[0].encode())


class Native(NamedTuple):
    """What the library holds."""

    send: NativeSender
    parse: NativeParser


def load(path: Path = LIBRARY) -> Native | None:
    """Loads the library; None if it is not built, or is built for another platform or from another source."""
    try:
        # Of the two, only sending takes long enough to release the interpreter lock.
        return Native(NativeSender(ctypes.CDLL(str(path))), NativeParser(ctypes.PyDLL(str(path))))
    except (OSError, AttributeError):
        return None
