"""The realtime core's Sender in C (native.c): one call for many connections, outside of the interpreter.

Optional. hatch_build.py compiles it where there is a compiler; without it everything works, at the price of a call of the
transport for each delivery. Docs: docs/adr/0019-native-send.md.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from pathlib import Path

LIBRARY = Path(__file__).with_name("_native.so")
"""Where the build puts it."""
_NOBODY: tuple[tuple[int, int], ...] = ()


class NativeSender:
    """Implements realtime.socket.Sender. The interpreter is free while it runs: the frame is immutable, the rest its own."""

    __slots__ = ("_send_each",)

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises AttributeError if the library is another."""
        self._send_each = library.tidewire_send_each
        self._send_each.restype = ctypes.c_int
        self._send_each.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        """See Sender."""
        places = array("i", fds)
        if not self._send_each(places.buffer_info()[0], len(places), frame, len(frame)):
            return _NOBODY
        return [(index, taken) for index, taken in enumerate(places) if taken >= 0]


def load(path: Path = LIBRARY) -> NativeSender | None:
    """The sender; None if it has not been built, or for another machine."""
    try:
        return NativeSender(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
