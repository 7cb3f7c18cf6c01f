"""Sends one frame to many sockets in one call of C (native.c), without the interpreter lock.

Optional: hatch_build.py compiles native.c where there is a compiler. Without it, each delivery calls the transport in
Python. Decision and measurements: docs/adr/0019-native-send.md.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from pathlib import Path

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


def load(path: Path = LIBRARY) -> NativeSender | None:
    """Loads the sender; None if it is not built, or is built for another platform."""
    try:
        return NativeSender(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
