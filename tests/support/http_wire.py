"""A cheap HTTP/1.1 client on asyncio's transport, for thousands of connections: streams, long polls. It can stop reading and
vanish, as `Wire` does for WebSockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.support.wire import ABNORMAL, RETRY_AFTER, Refused

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_END = b"\r\n\r\n"


class Response(NamedTuple):
    """A response with a length, or the head of a stream."""

    status: int
    head: bytes
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether the connection takes no further request."""
        return b"\r\nconnection: close" in self.head.lower()

    def refusal(self) -> ProblemError:
        """The problem that it describes."""
        try:
            code = json.loads(self.body)["code"]
        except (ValueError, KeyError, TypeError):
            code = "?"
        asked = RETRY_AFTER.search(self.head)
        return ProblemError(self.status, str(code), float(asked[1]) if asked is not None else None)


class ProblemError(Refused):
    """The response was not 200."""

    def __init__(self, status: int, code: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {code}", retry_after)
        self.status = status
        self.code = code


class HttpWire(asyncio.Protocol):
    """One connection. Passes each response to `on_response`, and the bytes of a body without a length to `on_chunk`."""

    def __init__(
        self,
        on_response: Callable[[Response], None],
        on_chunk: Callable[[bytes], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self._on_response = on_response
        self._on_chunk = on_chunk
        self._on_gone = on_gone
        self._buffer = b""
        self._is_streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._is_streaming:
            self._on_chunk(data)
            return
        self._buffer += data
        head, found, rest = self._buffer.partition(_END)
        if not found:
            return
        length = _LENGTH.search(head)
        if length is None:
            self._is_streaming, self._buffer = True, b""
            self._on_response(Response(_status(head), head, b""))
            if rest:
                self._on_chunk(rest)
        elif len(rest) >= (size := int(length[1])):
            assert len(rest) == size, "a response that nobody has asked for"
            self._buffer = b""
            self._on_response(Response(_status(head), head, rest))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._on_gone()

    def request(
        self,
        method: str,
        path: str,
        *,
        bearer: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends a request. The next one must wait for its response."""
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {bearer}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
        if self.transport is not None:
            self.transport.write("\r\n".join((*lines, "", "")).encode() + payload)

    def abort(self) -> None:
        """Aborts the connection."""
        if self.transport is not None:
            self.transport.abort()

    def read(self, on: bool) -> None:
        """Stops or resumes reading. Bytes that arrive meanwhile wait in the kernel, then in the service."""
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.resume_reading if on else self.transport.pause_reading)()


def _status(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


async def open_http(
    port: int,
    on_response: Callable[[Response], None],
    on_chunk: Callable[[bytes], None],
    on_gone: Callable[[], None],
    *,
    receive_buffer: int | None = None,
) -> HttpWire:
    """Opens a connection to 127.0.0.1. Raises OSError."""
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only for sockets it has made
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # must come before connecting
        await loop.sock_connect(raw, ("127.0.0.1", port))
        _, wire = await loop.create_connection(lambda: HttpWire(on_response, on_chunk, on_gone), sock=raw)
    except BaseException:
        raw.close()
        raise
    return wire


__all__ = ["ABNORMAL", "HttpWire", "ProblemError", "Response", "open_http"]
