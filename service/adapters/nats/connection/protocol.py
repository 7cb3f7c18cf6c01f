"""The NATS client protocol without I/O: parses what the server sends, encodes what the client sends.

https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

CRLF = b"\r\n"
PING = b"PING\r\n"
PONG = b"PONG\r\n"
MAX_LINE = 1_048_576
"""Bytes of a control line. INFO is the longest, because it lists the servers of a cluster."""


class Message(NamedTuple):
    """MSG or HMSG."""

    sid: int
    subject: str
    headers: bytes
    """As on the wire, from `NATS/1.0` on; empty without headers."""
    payload: bytes

    @property
    def status(self) -> int:
        """The status that the server sends in place of an answer (404, 503 …); 0 for an answer."""
        code = self.headers[9:12]
        return int(code) if code.isdigit() else 0

    @property
    def description(self) -> str:
        """The text after the status."""
        return self.headers[12:].partition(CRLF)[0].decode(errors="replace").strip()

    def header(self, name: str) -> str:
        """Returns the value of a header; empty if there is none."""
        _, found, rest = self.headers.partition(b"\r\n" + name.encode() + b":")
        return rest.partition(CRLF)[0].decode(errors="replace").strip() if found else ""


class Info(NamedTuple):
    """INFO: the server's version, limits and cluster."""

    fields: Mapping[str, Any]


class Ping(NamedTuple):
    """PING: the client must answer."""


class Pong(NamedTuple):
    """PONG: the server has processed everything before our PING."""


class Error(NamedTuple):
    """-ERR: the server closes the connection after most of them."""

    text: str


ServerOperation = Message | Info | Ping | Pong | Error


class ProtocolError(Exception):
    """The bytes are not the NATS protocol: the connection is useless."""


class Parser:
    """Splits a stream of bytes into operations."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[ServerOperation]:
        """Yields the operations that are complete now. Raises ProtocolError."""
        buffer = self._buffer + data if self._buffer else data
        at = 0
        try:
            while (end := buffer.find(CRLF, at)) >= 0:
                line = buffer[at:end]
                start = end + 2
                if line[:4] in (b"MSG ", b"HMSG"):
                    words = line.split()
                    size = int(words[-1])
                    if size < 0:
                        raise ProtocolError("a message of negative size")
                    if len(buffer) < start + size + 2:
                        break
                    at = start + size + 2
                    yield _message(words, buffer[start : start + size])
                else:
                    at = start
                    if (operation := _control(line)) is not None:
                        yield operation
            if end < 0 and len(buffer) - at > MAX_LINE:
                raise ProtocolError("a line without an end")
        except (ValueError, IndexError, msgspec.DecodeError) as error:
            raise ProtocolError(f"the server's operation cannot be parsed: {type(error).__name__}") from error
        finally:
            self._buffer = buffer[at:]


def _message(words: list[bytes], body: bytes) -> Message:
    headers = int(words[-2]) if words[0] == b"HMSG" else 0
    return Message(int(words[2]), words[1].decode(), body[:headers], body[headers:])


def _control(line: bytes) -> ServerOperation | None:
    word, _, rest = line.partition(b" ")
    match word.upper():
        case b"PING":
            return Ping()
        case b"PONG":
            return Pong()
        case b"INFO":
            return Info(msgspec.json.decode(rest, type=dict[str, Any]))
        case b"-ERR":
            return Error(rest.decode(errors="replace").strip("' "))
        case b"+OK":
            return None
    raise ProtocolError("the server sends an operation that is not in the protocol")


def encode_connect(options: Mapping[str, Any]) -> bytes:
    """Encodes CONNECT, the answer to INFO."""
    return b"CONNECT " + msgspec.json.encode(options) + CRLF


def encode_subscribe(subject: str, sid: int) -> bytes:
    """Encodes SUB."""
    return f"SUB {subject} {sid}\r\n".encode()


def encode_unsubscribe(sid: int) -> bytes:
    """Encodes UNSUB."""
    return f"UNSUB {sid}\r\n".encode()


def encode_publish(subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """Encodes PUB, or HPUB if there are headers."""
    to = f"{subject} {reply}" if reply else subject
    if headers is None:
        return b"".join((f"PUB {to} {len(payload)}\r\n".encode(), payload, CRLF))
    block = "".join(("NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n")).encode()
    return b"".join((f"HPUB {to} {len(block)} {len(block) + len(payload)}\r\n".encode(), block, payload, CRLF))
