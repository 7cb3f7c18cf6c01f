"""Connections that send the cheapest bytes as fast as they can, and come back when they are cut: a program of its own.

    python -m tests.load.flood PORT KIND CONNECTIONS SECONDS

It prints `flooding` when it begins, and a line of JSON at its end: bytes sent, connections that the service has ended or refused,
connections open at the end. Loopback only.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.core.receipt import Receipt, ReceiptSigner
from tests.support.harness import API_KEY, SECRET, token
from tests.support.raw import CLOSE, CONTINUATION, HANDSHAKE, PING, TEXT, frame

MANY = 20_000
PATIENCE = 10.0
HOST = "127.0.0.9"
"""Where the flood comes from: one address."""
REQUEST = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
USERS = 100
"""Whose tokens the floods of streams and receipts have, in turn. The rates of one user would end them at once."""
CHANNEL = "desk:flood"
EVENT_BYTES, EVENT_INTERVAL = 20_000, 0.02
"""What the backend publishes to streams that are hardly read: in a third of a second more than may wait for a stream."""
SLEEP = 1.0
"""Seconds between two reads of such a stream."""


def request(path: str, body: object, *, bearer: str) -> bytes:
    """A POST."""
    content = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {bearer}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + content


def upgrade(bearer: str | None = None) -> bytes:
    """The request for a WebSocket."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    lines = [f"{name}: {value}" for name, value in ({"Host": "x"} | HANDSHAKE | headers).items()]
    return "\r\n".join(("GET /ws HTTP/1.1", *lines, "", "")).encode()


def stream(user: str) -> bytes:
    """The request for a stream, which begins with events of its channel's history."""
    return request("/stream", {"subscriptions": [{"channel": CHANNEL, "tail": 5}]}, bearer=token(user))


def receipts(user: str) -> bytes:
    """Polls and emits with a receipt that is forged, and with one that has expired."""
    signer, now = ReceiptSigner(f"{SECRET}\n{API_KEY}".encode()), time.time()
    expired = signer.sign(Receipt("default", user, "s", now - 900, now - 600, now - 300, {}, is_polled=True))
    event = {"type": "desk.note", "channel": CHANNEL, "id": "n", "data": {}}
    shown = (expired, ReceiptSigner(b"another key").sign(Receipt("default", user, "s", now, now, now + 300, {})))
    bearer = token(user)
    polls = [request("/poll", {"receipt": receipt}, bearer=bearer) for receipt in shown]
    emits = [request("/emit", {**event, "receipt": receipt}, bearer=bearer) for receipt in shown]
    return b"".join((*polls, *emits)) * 10


def nothing(user: str) -> bytes:
    """No bytes."""
    return b""


@dataclass(frozen=True, slots=True)
class Kind:
    """What each connection of a flood does."""

    data: Callable[[str], bytes] = nothing
    """The bytes that a connection of this user sends again and again."""
    first: Callable[[str], bytes] = lambda user: upgrade()
    """The bytes that it sends before them."""
    sleeps: bool = False
    """Whether it hardly reads what the backend publishes."""
    is_dropped: bool = False
    """Whether it leaves as soon as its request is accepted."""
    share: float = 1.0
    """The part of the connections that this kind needs."""


def sends(data: bytes) -> Callable[[str], bytes]:
    """The same bytes for each user."""
    return lambda user: data


FLOODS = {
    "empty messages": Kind(sends(frame(TEXT) * MANY)),
    "pings": Kind(sends(frame(PING) * MANY)),
    "continuations": Kind(
        sends((frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 900 + frame(CONTINUATION)) * 20)
    ),
    "no frames": Kind(sends(b"\0" * 200_000)),
    "closes": Kind(sends(frame(CLOSE, b"\x03\xe8") * MANY)),
    "commands": Kind(
        sends(frame(TEXT, b'{"type":"ping","id":"p"}') * (MANY // 4)), first=lambda user: upgrade(token("flooder"))
    ),
    "requests": Kind(sends(REQUEST * (MANY // 4)), first=nothing),
    "half a head": Kind(
        sends(
            b"GET /nothing HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 8000) for n in range(100))
        ),
        first=nothing,
    ),
    # A node answers some 2 000 a second. Over more connections, each would stay below the rate at which it is cut.
    "receipts": Kind(receipts, first=nothing, share=0.1),
    "slow readers": Kind(first=stream, sleeps=True),
    "dropped streams": Kind(first=stream, is_dropped=True),
}


@dataclass(slots=True)
class Connection:
    """One connection of a flood."""

    end: socket.socket
    data: bytes
    reads_at: float
    """Monotonic seconds of its next read, if it sleeps."""
    sent: int = 0
    """Bytes of `data` that are sent; then they are sent again."""


class Flood:
    """All connections of one kind."""

    def __init__(self, port: int, kind: str) -> None:
        self._port = port
        self._kind = FLOODS[kind]
        self._users = [f"flooder-{number}" for number in range(USERS)]
        self._first = [self._kind.first(user) for user in self._users]
        self._data = [self._kind.data(user) for user in self._users]
        self._poll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._connects = 0
        self.sent = 0
        self.ended = 0

    def connect(self) -> None:
        """Opens one more, and sends its first bytes."""
        number, self._connects = self._connects % USERS, self._connects + 1
        end, data = socket.socket(), self._data[number]
        if self._kind.sleeps:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.bind((HOST, 0))
        try:
            end.connect(("127.0.0.1", self._port))
            end.sendall(self._first[number])
        except OSError:
            end.close()
            return
        end.setblocking(False)
        self._open[end.fileno()] = Connection(end, data, time.monotonic() + SLEEP)
        self._poll.register(end, select.EPOLLIN * (not self._kind.sleeps) | select.EPOLLOUT * bool(data))

    def run(self, connections: int, seconds: float) -> None:
        """Sends for so long, and then until the service has ended a connection, but at most PATIENCE seconds more: a slow machine
        takes that long to count the refusals of one connection."""
        over = time.monotonic() + seconds
        connections = round(connections * self._kind.share)
        backend = Backend(self._port) if self._kind.sleeps else None
        while time.monotonic() < (over if self.ended else over + PATIENCE):
            while len(self._open) < connections and (time.monotonic() < over or not self.ended):
                self.connect()
            for descriptor, events in self._poll.poll(0.05 if backend is None else EVENT_INTERVAL):
                if descriptor in self._open:
                    self._go_on(descriptor, events)
            if backend is not None:
                backend.publish()
                self._wake()

    def _go_on(self, descriptor: int, events: int) -> None:
        connection = self._open[descriptor]
        is_over = bool(events & (select.EPOLLHUP | select.EPOLLERR))
        try:
            if events & select.EPOLLIN:
                received = connection.end.recv(65_536)
                if self._kind.is_dropped and received.startswith(b"HTTP/1.1 200"):
                    self._drop(descriptor)
                    return
                is_over = is_over or not received or self._kind.is_dropped
            if events & select.EPOLLOUT and not is_over:
                count = connection.end.send(connection.data[connection.sent :])
                self.sent += count
                connection.sent = (connection.sent + count) % len(connection.data)
        except BlockingIOError:
            pass
        except OSError:
            is_over = True
        if is_over:
            self._close(descriptor)
            self.ended += 1

    def _wake(self) -> None:
        """Reads what has come to the connections that have slept long enough."""
        now = time.monotonic()
        for descriptor, connection in list(self._open.items()):
            if connection.reads_at <= now:
                connection.reads_at = now + SLEEP
                if _is_over(connection.end):
                    self._close(descriptor)
                    self.ended += 1

    def _drop(self, descriptor: int) -> None:
        """Leaves: every second connection with a reset."""
        if self._connects % 2:
            linger = struct.pack("ii", 1, 0)
            self._open[descriptor].end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._open.pop(descriptor).end.close()

    def close(self) -> int:
        """Ends all; returns how many were open."""
        left = len(self._open)
        for connection in self._open.values():
            connection.end.close()
        self._poll.close()
        return left


def _is_over(end: socket.socket) -> bool:
    """Reads all that has come. Returns whether the service has ended the connection."""
    try:
        while end.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class Backend:
    """Publishes to the channel of the flood, as long as its events are accepted one after the other."""

    def __init__(self, port: int) -> None:
        self._end = socket.create_connection(("127.0.0.1", port))
        self._end.settimeout(PATIENCE)
        event = {"type": "desk.note", "data": {"text": "x" * EVENT_BYTES}}
        self._request = request(f"/api/v1/channels/{CHANNEL}/events", event, bearer=API_KEY)
        self._next_at = 0.0

    def publish(self) -> None:
        """Publishes an event and reads the answer, if the time has come."""
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + EVENT_INTERVAL
        self._end.sendall(self._request)
        answer = self._end.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200"), answer


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
