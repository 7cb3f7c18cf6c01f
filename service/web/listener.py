"""What the kernel does for every connection, told once to the sockets that listen: those they accept inherit it (tcp(7))."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

from service.realtime.node import Bounds


def bound_buffers(listeners: Iterable[socket.socket], bounds: Bounds) -> None:
    """What waits in the kernel no delivery class can reach, and what a vanished peer never acknowledges must not stay."""
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.outbox.send_buffer)
        if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
            patience = round((bounds.deadlines.heartbeat + bounds.outbox.stall) * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
