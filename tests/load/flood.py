"""Connections that send the cheapest bytes as fast as they can, and come back when they are cut: a program of its own.

    python -m tests.load.flood PORT KIND CONNECTIONS SECONDS

It prints `flooding` when it begins, and a line of JSON at its end: bytes sent, connections ended by the service, connections open
at the end. Loopback only.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

from tests.support.harness import token
from tests.support.raw import CLOSE, CONTINUATION, HANDSHAKE, PING, TEXT, frame

MANY = 20_000
PATIENCE = 10.0
HOST = "127.0.0.9"
"""Where the flood comes from: one address."""
REQUEST = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"

FLOODS = {
    "empty messages": frame(TEXT) * MANY,
    "pings": frame(PING) * MANY,
    "continuations": (frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 900 + frame(CONTINUATION)) * 20,
    "no frames": b"\0" * 200_000,
    "closes": frame(CLOSE, b"\x03\xe8") * MANY,
    "commands": frame(TEXT, b'{"type":"ping","id":"p"}') * (MANY // 4),
    "requests": REQUEST * (MANY // 4),
    "half a head": b"GET /nothing HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 8000) for n in range(100)),
}
AUTHENTICATED = ("commands",)
PLAIN = ("requests", "half a head")


class Flood:
    """All connections of one kind."""

    def __init__(self, port: int, kind: str) -> None:
        self._port = port
        self._data = FLOODS[kind]
        headers = {} if kind not in AUTHENTICATED else {"Authorization": f"Bearer {token('flooder')}"}
        lines = [f"{name}: {value}" for name, value in ({"Host": "x"} | HANDSHAKE | headers).items()]
        self._head = b"" if kind in PLAIN else "\r\n".join(("GET /ws HTTP/1.1", *lines, "", "")).encode()
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, int]] = {}
        self.sent = 0
        self.ended = 0

    def connect(self) -> None:
        """Opens one more; what it sends first is the request for an upgrade."""
        end = socket.socket()
        end.bind((HOST, 0))
        try:
            end.connect(("127.0.0.1", self._port))
            end.sendall(self._head)
        except OSError:
            end.close()
            return
        end.setblocking(False)
        self._open[end.fileno()] = end, 0
        self._poll.register(end, select.EPOLLIN | select.EPOLLOUT)

    def run(self, connections: int, seconds: float) -> None:
        """Sends for so long, and then until the service has ended a connection, but at most PATIENCE seconds more: a slow machine
        takes that long to count the refusals of one connection."""
        over = time.monotonic() + seconds
        while time.monotonic() < (over if self.ended else over + PATIENCE):
            while len(self._open) < connections and time.monotonic() < over:
                self.connect()
            for descriptor, events in self._poll.poll(0.05):
                if descriptor in self._open:
                    self._go_on(descriptor, events)

    def _go_on(self, descriptor: int, events: int) -> None:
        end, at = self._open[descriptor]
        is_over = bool(events & (select.EPOLLHUP | select.EPOLLERR))
        try:
            if events & select.EPOLLIN and not end.recv(65_536):
                is_over = True
            if events & select.EPOLLOUT and not is_over:
                count = end.send(self._data[at:])
                self.sent += count
                self._open[descriptor] = end, (at + count) % len(self._data)
        except BlockingIOError:
            pass
        except OSError:
            is_over = True
        if is_over:
            self._poll.unregister(descriptor)
            del self._open[descriptor]
            end.close()
            self.ended += 1

    def close(self) -> int:
        """Ends all; returns how many were open."""
        left = len(self._open)
        for end, _ in self._open.values():
            end.close()
        self._poll.close()
        return left


def main() -> None:
    """See the module."""
    port, kind, connections, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    os.nice(10)  # it shares its core with the clients that are measured, and is no measure of anything itself
    flood = Flood(port, kind)
    print("flooding", flush=True)
    flood.run(connections, seconds)
    print(json.dumps({"sent": flood.sent, "ended": flood.ended, "open": flood.close()}))


if __name__ == "__main__":
    main()
