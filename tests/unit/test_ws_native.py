"""NativeSender on real sockets: complete, partial and failed sends, and no byte for any other descriptor."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.web.ws import native
from service.web.ws.native import NativeSender, load

pytestmark = pytest.mark.skipif(
    not native.LIBRARY.exists() and not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="no C compiler is to be had here",
)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def send() -> NativeSender:
    library = load()
    assert library is not None, f"{native.LIBRARY.name} is not built: run scripts/setup.sh dev"
    return library.send


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(5)]
    for ours, theirs in made:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        theirs.setblocking(False)
    yield made
    for pair in made:
        for end in pair:
            end.close()


def fds(pairs: list[Pair]) -> list[int]:
    return [ours.fileno() for ours, _ in pairs]


def read(end: socket.socket) -> bytes:
    got = b""
    try:
        while part := end.recv(65_536):
            got += part
    except BlockingIOError:
        pass
    return got


def fill(end: socket.socket) -> int:
    size = 0
    try:
        while True:
            size += end.send(b"#" * 1024)
    except BlockingIOError:
        return size


def test_send_reaches_every_socket_once(send: NativeSender, pairs: list[Pair]) -> None:
    assert list(send(fds(pairs), b"\x81\x05he\0lo")) == []
    assert [read(theirs) for _, theirs in pairs] == [b"\x81\x05he\0lo"] * 5


def test_send_to_no_descriptor_returns_nothing(send: NativeSender) -> None:
    assert list(send([], b"frame")) == []


def test_send_to_a_full_socket_is_reported_and_delays_nobody(send: NativeSender, pairs: list[Pair]) -> None:
    filled = fill(pairs[2][0])
    assert list(send(fds(pairs), b"frame")) == [(2, 0)]
    assert [read(theirs) for _, theirs in pairs] == [b"frame", b"frame", b"#" * filled, b"frame", b"frame"]


def test_send_taken_in_part_reports_the_exact_size(send: NativeSender) -> None:
    frame = bytes(range(256)) * 16_384
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        with ours, theirs:
            ours.setblocking(False)
            [(index, taken)] = send([ours.fileno()], frame)
            assert index == 0
            assert 0 < taken < len(frame)
            ours.close()
            theirs.settimeout(5)
            got = b""
            while part := theirs.recv(1 << 20):
                got += part
    assert got == frame[:taken]


def test_send_to_a_closed_peer_affects_only_that_descriptor(send: NativeSender, pairs: list[Pair]) -> None:
    """In particular no SIGPIPE, which would end the process."""
    wanted = fds(pairs)
    pairs[1][1].close()
    pairs[3][0].close()
    assert list(send([*wanted, -1, 1 << 30], b"frame")) == [(1, 0), (3, 0), (5, 0), (6, 0)]
    assert [read(pairs[number][1]) for number in (0, 2, 4)] == [b"frame"] * 3


def test_send_to_a_file_or_pipe_writes_nothing(send: NativeSender, tmp_path: Path) -> None:
    """A descriptor's number may be reused for one: send() refuses where write() would succeed."""
    reader, writer = os.pipe()
    with (tmp_path / "file").open("wb") as file:
        assert list(send([file.fileno(), writer], b"secret")) == [(0, 0), (1, 0)]
    os.close(writer)
    assert os.read(reader, 10) == b""
    os.close(reader)
    assert (tmp_path / "file").read_bytes() == b""


def test_load_of_a_missing_or_foreign_library_returns_none(tmp_path: Path) -> None:
    assert load(tmp_path / "absent.so") is None
    (tmp_path / "broken.so").write_bytes(b"\x7fELF of another machine")
    assert load(tmp_path / "broken.so") is None
    import _ctypes  # a library that exists, without our function

    assert load(Path(_ctypes.__file__)) is None
