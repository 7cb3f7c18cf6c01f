"""The sender in C, on real sockets: who takes all of a frame, a part, or nothing; and that nobody else gets a byte."""

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
    sender = load()
    assert sender is not None, f"{native.LIBRARY.name} is not built: run scripts/setup.sh dev"
    return sender


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


def test_everyone_gets_the_frame_once(send: NativeSender, pairs: list[Pair]) -> None:
    assert list(send(fds(pairs), b"\x81\x05he\0lo")) == []
    assert [read(theirs) for _, theirs in pairs] == [b"\x81\x05he\0lo"] * 5


def test_nobody_at_all(send: NativeSender) -> None:
    assert list(send([], b"frame")) == []


def test_who_takes_nothing_is_told_of_and_holds_up_nobody(send: NativeSender, pairs: list[Pair]) -> None:
    filled = fill(pairs[2][0])
    assert list(send(fds(pairs), b"frame")) == [(2, 0)]
    assert [read(theirs) for _, theirs in pairs] == [b"frame", b"frame", b"#" * filled, b"frame", b"frame"]


def test_who_takes_a_part_has_got_exactly_that_part() -> None:
    sender = load()
    assert sender is not None
    frame = bytes(range(256)) * 16_384
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        with ours, theirs:
            ours.setblocking(False)
            [(index, taken)] = sender([ours.fileno()], frame)
            assert index == 0
            assert 0 < taken < len(frame)
            ours.close()
            theirs.settimeout(5)
            got = b""
            while part := theirs.recv(1 << 20):
                got += part
    assert got == frame[:taken]


def test_a_peer_that_is_gone_and_a_descriptor_that_is_none_cost_only_themselves(
    send: NativeSender, pairs: list[Pair]
) -> None:
    """Above all no SIGPIPE, which would end the process."""
    wanted = fds(pairs)
    pairs[1][1].close()
    pairs[3][0].close()
    assert list(send([*wanted, -1, 1 << 30], b"frame")) == [(1, 0), (3, 0), (5, 0), (6, 0)]
    assert [read(pairs[number][1]) for number in (0, 2, 4)] == [b"frame"] * 3


def test_what_is_no_socket_gets_nothing(send: NativeSender, tmp_path: Path) -> None:
    """A number that became a file's or a pipe's: send() refuses where write() would not."""
    reader, writer = os.pipe()
    with (tmp_path / "file").open("wb") as file:
        assert list(send([file.fileno(), writer], b"secret")) == [(0, 0), (1, 0)]
    os.close(writer)
    assert os.read(reader, 10) == b""
    os.close(reader)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_library_that_is_absent_or_another_is_no_sender(tmp_path: Path) -> None:
    assert load(tmp_path / "absent.so") is None
    (tmp_path / "broken.so").write_bytes(b"\x7fELF of another machine")
    assert load(tmp_path / "broken.so") is None
    import _ctypes  # a library for certain, without our function

    assert load(Path(_ctypes.__file__)) is None
