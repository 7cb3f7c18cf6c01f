"""Sends requests as fast as they are answered, many at once on each of many connections, in a process of its own, until killed.

`python -m tests.integration.request_flood PORT CONNECTIONS`
"""

from __future__ import annotations

import selectors
import socket
import sys

PIPELINED = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" * 200


def flood(port: int, count: int) -> None:
    """Never returns."""
    selector = selectors.DefaultSelector()
    for _ in range(count):
        end = socket.create_connection(("127.0.0.1", port))
        end.setblocking(False)
        selector.register(end, selectors.EVENT_READ | selectors.EVENT_WRITE)
    print("flooding", flush=True)
    while True:
        for key, events in selector.select():
            end = key.fileobj  # type: ignore[assignment]  # only sockets are registered
            if events & selectors.EVENT_READ and not end.recv(65_536):
                raise ConnectionError("the service has closed a connection whose requests it answers")
            if events & selectors.EVENT_WRITE:
                end.send(PIPELINED)


if __name__ == "__main__":
    flood(int(sys.argv[1]), int(sys.argv[2]))
