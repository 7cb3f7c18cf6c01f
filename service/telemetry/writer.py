"""Writes lines to a descriptor in a thread of its own, so that nobody who logs waits for whoever reads there.

A reader may stop reading, end, or be a disk that is full. None of that may hold up or fail what the process is for: a line that
cannot be kept or written is dropped and counted. The descriptor stays as it is: it is shared with other processes, which
`O_NONBLOCK` would surprise.

    writer = LineWriter(2, max_bytes=1_048_576, drops=Drops())
    writer.write(b"a line\n")   # never waits, never raises
    writer.flush(timeout=1.0)   # at the end of the process
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from time import monotonic
from typing import Final, Literal

Reason = Literal["queue_full", "write", "render"]
REASONS: Final[tuple[Reason, ...]] = ("queue_full", "write", "render")

REST_TIMEOUT: Final = 0.5
"""Seconds that a fork waits for the thread to write what is queued and end."""


class Drops:
    """Counts the lines that were dropped, by reason; from any thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins at zero, with a lock that no thread holds: for the child of a fork too."""
        self._lock = threading.RLock()
        self._counts: dict[Reason, int] = dict.fromkeys(REASONS, 0)

    def count(self, reason: Reason) -> None:
        """Counts one."""
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> Mapping[str, int]:
        """All counts."""
        return dict(self._counts.items())


class LineWriter:
    """Queues lines, up to `max_bytes`, and writes them in order. Its thread starts with the first line and is a daemon.

    Locks are reentrant: a line may come from a destructor or a signal handler that interrupts the writing of another.
    """

    def __init__(self, descriptor: int, *, max_bytes: int, drops: Drops) -> None:
        self.descriptor = descriptor
        self.max_bytes = max_bytes
        self._drops = drops
        self._is_torn = False
        """Whether the last line was written in part."""
        self._empty()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def _empty(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._written = 0
        """Lines that left the queue since the start."""
        self._stuck_at = -1
        """`_written` when a flush gave up: one that follows does not wait unless the reader has read since."""
        self._thread: threading.Thread | None = None
        self._is_resting = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the lines that are not written yet."""
        return self._waiting

    def write(self, line: bytes) -> None:
        """Queues a line, which ends with a newline. Never waits for the reader and never raises."""
        with self._changed:
            if self._waiting + len(line) > self.max_bytes:
                self._drops.count("queue_full")
                return
            self._lines.append(line)
            self._waiting += len(line)
            self._ensure_thread()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Waits until all lines are written or dropped; False if that took longer."""
        until = monotonic() + timeout
        with self._changed:
            self._ensure_thread()
            while self._lines and self._stuck_at != self._written:
                left = until - monotonic()
                if left <= 0:
                    self._stuck_at = self._written
                else:
                    self._changed.wait(left)
            return not self._lines

    def _ensure_thread(self) -> None:
        if not self._lines or (self._thread is not None and self._thread.is_alive()):
            return
        thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        with suppress(RuntimeError):  # no thread to be had: the lines wait for the next try, within the bound
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                while not self._lines:
                    if self._is_resting:
                        self._thread = None  # under the lock: the next line starts another
                        return
                    changed.wait()
                lines = self._next()
            self._put(lines)
            with changed:
                for line in lines:
                    self._lines.popleft()
                    self._waiting -= len(line)
                self._written += len(lines)
                changed.notify_all()

    def _next(self) -> list[bytes]:
        """The next lines that a pipe takes as one, so that lines of processes that share it do not mix: several, as this thread
        waits some milliseconds for each of its turns while the loop is busy."""
        lines, size = [self._lines[0]], len(self._lines[0])
        for line in islice(self._lines, 1, None):
            size += len(line)
            if size > select.PIPE_BUF:
                break
            lines.append(line)
        return lines

    def _put(self, lines: Sequence[bytes]) -> None:
        text = b"".join(lines)
        written = self._write_all(b"\n" + text) - 1 if self._is_torn else self._write_all(text)
        if written == len(text):
            self._is_torn = False
            return
        if written > 0:
            self._is_torn = text[written - 1 : written] != b"\n"
        for end in accumulate(map(len, lines)):
            if end > written:
                self._drops.count("write")

    def _write_all(self, data: bytes) -> int:
        """Returns how many bytes were written: all, unless that failed."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:  # somebody who shares the descriptor has made it so
                poll = select.poll()
                poll.register(self.descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        return len(data) - len(left)

    # --- forks --------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Has the thread end, unless its reader keeps it: a child has no use for half a thread, nor for its parent's lines."""
        self._is_resting = True
        with self._changed:
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(REST_TIMEOUT if self._stuck_at != self._written else 0.0)
            if thread.is_alive():
                self._stuck_at = self._written
        self._changed.acquire()

    def _after_fork_in_parent(self) -> None:
        self._is_resting = False
        self._ensure_thread()
        self._changed.release()

    def _after_fork_in_child(self) -> None:
        self._empty()
        self._drops.reset()


class GuardedStream(io.TextIOBase):
    """Takes the place of `sys.stderr`: what anybody prints there goes through a writer, line by line, and never raises."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        """What text is written as."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        """What becomes of a character that cannot be encoded."""
        return "backslashreplace"

    def fileno(self) -> int:
        """The descriptor that is written to in the end."""
        return self.writer.descriptor

    def isatty(self) -> bool:
        """Whether that is a terminal."""
        return os.isatty(self.writer.descriptor)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Takes text; whole lines go on at once."""
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._send(lines + newline)
        elif len(self._begun) > io.DEFAULT_BUFFER_SIZE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Sends the line that was begun."""
        begun, self._begun = self._begun, ""
        if begun:
            self._send(begun)

    def _send(self, text: str) -> None:
        self.writer.write(text.encode("utf-8", "backslashreplace"))
