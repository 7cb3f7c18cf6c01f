"""The NATS client protocol, without I/O: bytes in, what the server said out; and the lines that a client says.

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
"""Of a control line; INFO is the longest, and grows with the servers of a cluster."""


class Message(NamedTuple):
    """MSG or HMSG."""

    sid: int
    subject: str
    headers: bytes
    """As they stand on the wire, from `NATS/1.0` on; empty without any."""
    payload: bytes

    @property
    def status(self) -> int:
        """What the server says in place of an answer: 404, 503 …; 0 when this is one."""
        code = self.headers[9:12]
        return int(code) if code.isdigit() else 0

    @property
    def description(self) -> str:
        """The words beside the status."""
        return self.headers[12:].partition(CRLF)[0].decode(errors="replace").strip()

    def header(self, name: str) -> str:
        """A header's value; empty without it."""
        _, found, rest = self.headers.partition(b"\r\n" + name.encode() + b":")
        return rest.partition(CRLF)[0].decode(errors="replace").strip() if found else ""


class Info(NamedTuple):
    """What the server says about itself."""

    fields: Mapping[str, Any]


class Ping(NamedTuple):
    """The server asks whether we are there."""


class Pong(NamedTuple):
    """The server has dealt with everything before our PING."""


class Complaint(NamedTuple):
    """-ERR; the server closes the connection after most of them."""

    text: str


Said = Message | Info | Ping | Pong | Complaint


class Broken(Exception):  # noqa: N818  # reads as what the stream of bytes is
    """These bytes are no NATS: the connection is of no more use."""


class Parser:
    """Cuts a stream of bytes into what the server said."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[Said]:
        """What has been said completely now.

        Raises Broken.
        """
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
                        raise Broken("a message of less than nothing")
                    if len(buffer) < start + size + 2:
                        break
                    at = start + size + 2
                    yield _message(words, buffer[start : start + size])
                else:
                    at = start
                    if (said := _control(line)) is not None:
                        yield said
            if end < 0 and len(buffer) - at > MAX_LINE:
                raise Broken("a line without an end")
        except (ValueError, IndexError, msgspec.DecodeError) as error:
            raise Broken(f"the server's words make no sense: {type(error).__name__}") from error
        finally:
            self._buffer = buffer[at:]


def _message(words: list[bytes], body: bytes) -> Message:
    headers = int(words[-2]) if words[0] == b"HMSG" else 0
    return Message(int(words[2]), words[1].decode(), body[:headers], body[headers:])


def _control(line: bytes) -> Said | None:
    word, _, rest = line.partition(b" ")
    match word.upper():
        case b"PING":
            return Ping()
        case b"PONG":
            return Pong()
        case b"INFO":
            return Info(msgspec.json.decode(rest, type=dict[str, Any]))
        case b"-ERR":
            return Complaint(rest.decode(errors="replace").strip("' "))
        case b"+OK":
            return None
    raise Broken("the server says something that is not in the protocol")


def connect(options: Mapping[str, Any]) -> bytes:
    """The client's answer to INFO."""
    return b"CONNECT " + msgspec.json.encode(options) + CRLF


def subscribe(subject: str, sid: int) -> bytes:
    """Asks for a subject's messages."""
    return f"SUB {subject} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    """Ends that."""
    return f"UNSUB {sid}\r\n".encode()


def publish(subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """Says something."""
    to = f"{subject} {reply}" if reply else subject
    if headers is None:
        return b"".join((f"PUB {to} {len(payload)}\r\n".encode(), payload, CRLF))
    block = "".join(("NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n")).encode()
    return b"".join((f"HPUB {to} {len(block)} {len(block) + len(payload)}\r\n".encode(), block, payload, CRLF))
