"""The writer of the log: in order, within its bound, and never in anybody's way."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from time import monotonic

import pytest

from service.telemetry.writer import Drops, GuardedStream, LineWriter

SOON = 20.0


class Pipe:
    """A pipe that holds a page, and its ends."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)

    def close(self, *ends: int) -> None:
        for end in self._open & set(ends or self._open):
            self._open.discard(end)
            os.close(end)

    def read(self) -> bytes:
        """All there is, once nobody writes any more."""
        with os.fdopen(self.reading, "rb", closefd=False) as reader:
            return reader.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def writer_to(pipe: Pipe, drops: Drops, max_bytes: int = 65_536) -> LineWriter:
    return LineWriter(pipe.writing, max_bytes=max_bytes, drops=drops)


def read_all(pipe: Pipe, writer: LineWriter) -> None:
    """Reads until the writer has written all."""
    reader = threading.Thread(target=pipe.read)
    reader.start()
    deadline = monotonic() + SOON
    while not writer.flush(SOON):
        assert monotonic() < deadline
    pipe.close(pipe.writing)
    reader.join()


def test_lines_are_written_in_order(pipe: Pipe) -> None:
    drops = Drops()
    writer = writer_to(pipe, drops)
    for number in range(300):
        writer.write(b"%d\n" % number)
    assert writer.flush(SOON)
    pipe.close(pipe.writing)
    assert pipe.read() == b"".join(b"%d\n" % number for number in range(300))
    assert drops.counts() == {"queue_full": 0, "write": 0, "render": 0}


def test_lines_above_the_limit_are_dropped_and_counted(pipe: Pipe) -> None:
    drops = Drops()
    writer = writer_to(pipe, drops, max_bytes=10_000)
    for _ in range(200):
        writer.write(b"x" * 99 + b"\n")
    assert writer.waiting_bytes <= 10_000
    assert drops.counts()["queue_full"] >= 200 - 100 - 41, "a page is in the pipe, the bound in the queue"
    assert not writer.flush(0.05)
    assert not writer.flush(SOON), "the reader has not read since"
    read_all(pipe, writer)
    assert writer.waiting_bytes == 0


def test_lines_without_reader_are_dropped_and_counted(pipe: Pipe) -> None:
    drops = Drops()
    writer = writer_to(pipe, drops)
    pipe.close(pipe.reading)
    for _ in range(3):
        writer.write(b"lost\n")
    assert writer.flush(SOON)
    assert drops.counts()["write"] == 3


def test_line_after_a_partial_one_starts_on_a_new_line(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = Drops()
    writer = writer_to(pipe, drops)
    write, calls = os.write, 0

    def filling(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:4] if calls == 1 else data)

    monkeypatch.setattr(os, "write", filling)
    writer.write(b"whole line\n")
    assert writer.flush(SOON)
    writer.write(b"next\n")
    assert writer.flush(SOON)
    pipe.close(pipe.writing)
    assert pipe.read() == b"whol\nnext\n"
    assert drops.counts()["write"] == 1


def test_partial_lines_are_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = Drops()
    writer = writer_to(pipe, drops)
    write, begun, go_on, space = os.write, threading.Event(), threading.Event(), [6, 12, 0, 99]

    def filling(descriptor: int, data: bytes) -> int:
        begun.set()
        go_on.wait(SOON)
        if not (size := space.pop(0)):
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:size])

    monkeypatch.setattr(os, "write", filling)
    writer.write(b"first\n")
    assert begun.wait(SOON)
    for line in (b"one\n", b"two\nlines\n", b"four\n", b"five\n"):  # one write, as they wait for the first
        writer.write(line)
    go_on.set()
    assert writer.flush(SOON)
    assert drops.counts()["write"] == 3
    writer.write(b"last\n")
    assert writer.flush(SOON)
    pipe.close(pipe.writing)
    assert pipe.read() == b"first\none\ntwo\nline\nlast\n"


def test_fork_child_writes_only_its_own_lines(pipe: Pipe) -> None:
    drops = Drops()
    writer = writer_to(pipe, drops)
    writer.write(b"parent, before\n")
    drops.count("write")
    child = os.fork()
    if child == 0:
        writer.write(b"child %d\n" % drops.counts()["write"])
        os._exit(0 if writer.flush(SOON) else 1)
    assert os.waitpid(child, 0)[1] == 0
    writer.write(b"parent, after\n")
    assert writer.flush(SOON)
    pipe.close(pipe.writing)
    assert pipe.read() == b"parent, before\nchild 0\nparent, after\n"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: of the very case that is tested
def test_fork_does_not_wait_for_a_blocked_reader(pipe: Pipe) -> None:
    writer = writer_to(pipe, Drops())
    for _ in range(100):
        writer.write(b"x" * 99 + b"\n")
    child = os.fork()
    if child == 0:
        os._exit(writer.waiting_bytes)
    assert os.waitpid(child, 0)[1] == 0
    assert writer.waiting_bytes > 0
    read_all(pipe, writer)


def test_guarded_stream_writes_whole_lines_and_never_raises(pipe: Pipe) -> None:
    drops = Drops()
    stream = GuardedStream(writer_to(pipe, drops))
    print("one", "two", file=stream)
    print("begun", end="", file=stream)
    assert stream.writer.flush(SOON)
    print(" lone \ud800", file=stream, flush=True)
    assert stream.writer.flush(SOON)
    pipe.close(pipe.writing)
    assert pipe.read() == b"one two\nbegun lone \\ud800\n"
    stream.write("too late\n")
    assert stream.writer.flush(SOON)
    assert drops.counts()["write"] == 1
    assert stream.fileno() == pipe.writing
