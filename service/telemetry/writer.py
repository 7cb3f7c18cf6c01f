"""Writes lines to a descriptor in a separate thread, so that logging never waits for the reader.

The reader may stop reading, close the pipe, or be a full disk. None of that may delay or fail the service: a line that cannot be
queued or written is dropped and counted. The descriptor is not made non-blocking, because other processes share it.

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
"""Seconds that a fork waits for the thread to write the queue and end."""


class Drops:
    """Counts dropped lines by reason. Safe in any thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Sets all counts to zero, with a new lock. Also called in the child of a fork."""
        self._lock = threading.RLock()
        self._counts: dict[Reason, int] = dict.fromkeys(REASONS, 0)

    def count(self, reason: Reason) -> None:
        """Counts one dropped line."""
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> Mapping[str, int]:
        """Returns the counts by reason."""
        return dict(self._counts.items())


class LineWriter:
    """Queues lines, up to `max_bytes`, and writes them in order. The first line starts its daemon thread.

    Locks are reentrant: a destructor or a signal handler may log while another line is queued.
    """

    def __init__(self, descriptor: int, *, max_bytes: int, drops: Drops) -> None:
        self.descriptor = descriptor
        self.max_bytes = max_bytes
        self._drops = drops
        self._is_torn = False
        """Whether the last line was written only in part."""
        self._reset()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._written = 0
        """Lines that have left the queue."""
        self._stuck_at = -1
        """`_written` when a flush timed out. The next flush waits only if the reader has read since."""
        self._thread: threading.Thread | None = None
        self._is_forking = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the lines that are queued."""
        return self._waiting

    def write(self, line: bytes) -> None:
        """Queues a line, which ends with a newline. Never waits and never raises."""
        with self._changed:
            if self._waiting + len(line) > self.max_bytes:
                self._drops.count("queue_full")
                return
            self._lines.append(line)
            self._waiting += len(line)
            self._ensure_thread()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Waits until all lines are written or dropped. Returns False after `timeout` seconds."""
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
        with suppress(RuntimeError):  # no thread can be started: the lines wait for the next attempt
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                while not self._lines:
                    if self._is_forking:
                        self._thread = None  # while the lock is held, so that the next line starts another thread
                        return
                    changed.wait()
                lines = self._next_chunk()
            self._write(lines)
            with changed:
                for line in lines:
                    self._lines.popleft()
                    self._waiting -= len(line)
                self._written += len(lines)
                changed.notify_all()

    def _next_chunk(self) -> list[bytes]:
        """Returns the next lines that a pipe accepts atomically, so that lines of several processes do not mix.

        Several lines at once, because this thread waits milliseconds for the GIL while the event loop is busy.
        """
        lines, size = [self._lines[0]], len(self._lines[0])
        for line in islice(self._lines, 1, None):
            size += len(line)
            if size > select.PIPE_BUF:
                break
            lines.append(line)
        return lines

    def _write(self, lines: Sequence[bytes]) -> None:
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
        """Returns the number of bytes written: all, unless writing failed."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:  # another process has made the shared descriptor non-blocking
                poll = select.poll()
                poll.register(self.descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        return len(data) - len(left)

    # --- forks --------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Ends the thread, unless the reader blocks it. A thread does not survive in the child, and the parent must
        write its own lines."""
        self._is_forking = True
        with self._changed:
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(REST_TIMEOUT if self._stuck_at != self._written else 0.0)
            if thread.is_alive():
                self._stuck_at = self._written
        self._changed.acquire()

    def _after_fork_in_parent(self) -> None:
        self._is_forking = False
        self._ensure_thread()
        self._changed.release()

    def _after_fork_in_child(self) -> None:
        self._reset()
        self._drops.reset()


class GuardedStream(io.TextIOBase):
    """Replaces `sys.stderr`: whatever is printed there goes through a writer, line by line, and never raises."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer
        self._partial = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        """The encoding of the output."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        """How characters that cannot be encoded are written."""
        return "backslashreplace"

    def fileno(self) -> int:
        """Returns the descriptor of the writer."""
        return self.writer.descriptor

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self.writer.descriptor)

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, text: str) -> int:
        """Writes text. Complete lines are queued at once."""
        lines, newline, self._partial = (self._partial + text).rpartition("\n")
        if newline:
            self._send(lines + newline)
        elif len(self._partial) > io.DEFAULT_BUFFER_SIZE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Queues the incomplete line."""
        partial, self._partial = self._partial, ""
        if partial:
            self._send(partial)

    def _send(self, text: str) -> None:
        self.writer.write(text.encode("utf-8", "backslashreplace"))
