"""Sends requests as fast as the service takes them, on many connections, in a process of its own, until killed.

`python -m tests.integration.request_flood PORT CONNECTIONS KIND`
"""

from __future__ import annotations

import selectors
import socket
import sys
from contextlib import suppress

POST = b"POST /tickets HTTP/1.1\r\nHost: x\r\n"
KINDS = {
    "pipelined": (b"", b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" * 200),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 20_000),
    "body": (POST + b"Content-Length: 1000000000\r\n\r\n", b" " * 200_000),
    "head": (b"GET /ws HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 2_000),
}
"""What is sent first, and then again and again."""


def flood(port: int, count: int, kind: str) -> None:
    """Never returns."""
    first, more = KINDS[kind]
    selector = selectors.DefaultSelector()

    def connect() -> None:
        end = socket.socket()
        end.setblocking(False)
        with suppress(BlockingIOError):
            end.connect(("127.0.0.1", port))
        selector.register(end, selectors.EVENT_WRITE, data=first)

    for _ in range(count):
        connect()
    print("flooding", flush=True)
    while True:
        for key, events in selector.select():
            end = key.fileobj
            assert isinstance(end, socket.socket)
            try:
                if events & selectors.EVENT_READ and not end.recv(65_536):
                    raise ConnectionResetError
                if events & selectors.EVENT_WRITE:
                    end.send(key.data + more)
                    selector.modify(end, selectors.EVENT_READ | selectors.EVENT_WRITE, data=b"")
            except ConnectionError:
                selector.unregister(end)
                end.close()
                connect()
            except BlockingIOError:
                pass


if __name__ == "__main__":
    flood(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
