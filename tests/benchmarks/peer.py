"""A server for the load client under test: it does to each connection exactly what a test wants, down to the TCP segment."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.build import build, can_sanitize

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEADLINE = 30.0
"""Seconds that one run may take; the sanitizers make it some times slower."""
SANITIZERS = {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"}


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True, compressed: bool = False) -> bytes:
    """An unmasked frame."""
    first = (0x80 if fin else 0) | (0x40 if compressed else 0) | opcode
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 65_536:
        return bytes((first, 126)) + len(payload).to_bytes(2, "big") + payload
    return bytes((first, 127)) + len(payload).to_bytes(8, "big") + payload


@dataclass
class Caller:
    """One connection of the load client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    path: str
    head: list[str]
    texts: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)
    state: Any = None
    """Whatever the test keeps there."""

    def send(self, text: bytes) -> None:
        self.raw(frame(text))

    def raw(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def pieces(self, *pieces: bytes) -> None:
        """Sends each when the client has read the one before: each comes out of a read of its own."""
        for piece in pieces:
            self.raw(piece)
            async with asyncio.timeout(DEADLINE):
                while self._under_way():  # noqa: ASYNC110  # the kernel tells nobody that another process has read
                    await asyncio.sleep(0.0002)

    def _under_way(self) -> bool:
        """Whether bytes lie unread at the client's end. Loopback has put them there before `send` returns."""
        near, far = (self.writer.get_extra_info(name) for name in ("sockname", "peername"))
        return _unread(far, near) > 0

    async def read_frame(self) -> tuple[int, bytes]:
        first, size = await self.reader.readexactly(2)
        assert first & 0x80, "the client fragments nothing"
        assert not first & 0x70, "the client compresses nothing"
        assert size & 0x80, "clients must mask"
        size &= 0x7F
        if size > 125:
            minimum, width = (126, 2) if size == 126 else (65_536, 8)
            size = int.from_bytes(await self.reader.readexactly(width), "big")
            assert size >= minimum, "the length must be written in as few bytes as it takes"
        mask = await self.reader.readexactly(4)
        self.masks.append(mask)
        masked = await self.reader.readexactly(size)
        return first & 0x0F, bytes(octet ^ mask[n % 4] for n, octet in enumerate(masked))


def _unread(local: tuple[str, int], remote: tuple[str, int]) -> int:
    """The bytes that this end of a TCP connection has not read; sock_diag(7)."""
    addresses = b"".join(socket.inet_aton(host) + bytes(12) for host, _ in (local, remote))
    which = struct.pack("!HH", local[1], remote[1]) + addresses + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    question = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + which
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:  # NETLINK_SOCK_DIAG
        kernel.send(
            struct.pack("=IHHII", 16 + len(question), 20, 1, 1, 0) + question
        )  # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST
        answer = kernel.recv(4096)
    assert struct.unpack_from("=H", answer, 4)[0] == 20, "the kernel does not know this connection"
    return int(struct.unpack_from("=I", answer, 16 + 4 + 48 + 4)[0])


@dataclass
class Post:
    """A publication over HTTP."""

    line: str
    head: list[str]
    body: bytes


OnText = Callable[["Peer", Caller, bytes], Awaitable[None]]
OnJoin = Callable[["Peer", Caller], Awaitable[None]]


async def _silent(_peer: Peer, _caller: Caller) -> None: ...


async def to_all(peer: Peer, _caller: Caller, text: bytes) -> None:
    """What a server does with one room."""
    for member in peer.callers:
        member.send(text)


@dataclass
class Peer:
    """The server. What is wrong with a connection is in `faults`, which the test must look at (`load` does)."""

    on_text: OnText = to_all
    on_join: OnJoin = _silent
    on_post: Callable[[Peer, Post], bytes] | None = None
    """Returns the whole answer."""
    answer: Callable[[list[str], str], bytes] | None = None
    """Makes the answer to an upgrade of (head, right Sec-WebSocket-Accept)."""
    port: int = 0
    callers: list[Caller] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has ended it
        except Exception as error:
            self.faults.append(error)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line, *head = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            fields = dict(entry.lower().split(": ", 1) for entry in head)
            if fields.get("upgrade") == "websocket":
                break
            post = Post(line, head, await reader.readexactly(int(fields["content-length"])))
            self.posts.append(post)
            assert self.on_post is not None
            writer.write(self.on_post(self, post))
        key = next(entry.split(": ")[1] for entry in head if entry.startswith("Sec-WebSocket-Key:"))
        accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
        writer.write(self.answer(head, accept) if self.answer else accepted(accept))
        caller = Caller(reader, writer, line.split(" ")[1], head)
        self.callers.append(caller)
        try:
            await self.on_join(self, caller)
            while True:
                opcode, payload = await caller.read_frame()
                if opcode == TEXT:
                    caller.texts.append(payload)
                    await self.on_text(self, caller, payload)
                elif opcode == PONG:
                    caller.pongs.append(payload)
        finally:
            self.callers.remove(caller)


def accepted(accept: str, *lines: str) -> bytes:
    """The answer that opens a WebSocket."""
    head = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "connection: upgrade",
        f"sec-websocket-accept:  {accept} ",
    ]
    return "\r\n".join([*head, *lines, "", ""]).encode()


def escaped(value: str) -> str:
    """As JOB.md says."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


EVENT = (("marker", '"t":'), ("message", '{"t":%t,"p":"%p"}'))


def job_file(directory: Path, port: int, *lines: tuple[str, object]) -> Path:
    """A job of these lines; a value that is a tuple is an answer's two parts. Events look as EVENT says, unless given."""
    given = {key for key, _ in lines}
    path = directory / "job"
    with path.open("w") as file:
        file.write(f"# a job\n\nport {port}\n")
        for key, value in (*(line for line in EVENT if line[0] not in given), *lines):
            parts = value if isinstance(value, tuple) else (str(value),)
            file.write(f"{key} " + "\t".join(escaped(part) for part in parts) + "\n")
    return path


@functools.cache
def programs(sanitize: bool) -> Path:
    """The folder of the compiled programs: such that watch themselves if that is wanted and the compiler can."""
    return build(sanitize=sanitize and can_sanitize())


@asynccontextmanager
async def started(job: Path, *, sanitize: bool = True) -> AsyncIterator[asyncio.subprocess.Process]:
    """The load client at this job, all of its streams in the test's hands."""
    folder = await asyncio.to_thread(programs, sanitize)
    process = await asyncio.create_subprocess_exec(
        str(folder / "load"),
        str(job),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **SANITIZERS},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def finished(job: Path, *, sanitize: bool = True) -> tuple[int, str, str]:
    """Runs the job to its end: exit code, stdout, stderr."""
    async with started(job, sanitize=sanitize) as process, asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


async def load(job: Path, peer: Peer | None = None, *, sanitize: bool = True) -> dict[str, Any]:
    """Runs a job that must succeed; returns its report."""
    code, out, err = await finished(job, sanitize=sanitize)
    faults = peer.faults if peer else []
    assert (code, err, faults) == (0, "", []), (code, err, faults)
    report: dict[str, Any] = json.loads(out)
    return report


@asynccontextmanager
async def limit() -> AsyncIterator[int]:
    """The limit server, watching itself; its port."""
    folder = await asyncio.to_thread(programs, True)
    process = await asyncio.create_subprocess_exec(
        str(folder / "limit"),
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **SANITIZERS},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            word, port = (await process.stdout.readline()).split()
        assert word == b"listening"
        yield int(port)
        assert process.returncode is None, "it ended by itself"
    finally:
        if process.returncode is None:
            process.kill()
        _, err = await process.communicate()
        assert err == b"", err.decode()
