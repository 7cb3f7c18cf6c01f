"""Runs the service like `python -m service`, and describes its memory in a file on each SIGUSR2. For `idle_memory`.

The file is $MEMORY_PROBE. With $MEMORY_TRACE, the first description starts tracemalloc. Later ones say which lines hold memory.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import runpy
import signal
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import PAGE

ALIGNMENT = 16
"""Python's allocator rounds sizes up to it."""
MAX_SMALL = 512
"""Bytes of the largest block of Python's allocator; malloc holds larger ones."""


class _Mallinfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


class Memory(msgspec.Struct):
    """Bytes of a process, by allocator."""

    rss: int
    objects: int
    """Blocks in use of Python's allocator: objects of up to MAX_SMALL bytes."""
    arenas: int
    """What Python's allocator has reserved."""
    malloc_used: int
    """What malloc has given out in its heap: larger objects, libuv's handles, OpenSSL."""
    malloc_heap: int
    mapped: int
    """What malloc has mapped for each of its largest blocks: tables of dictionaries, and Python's arenas are not among them."""
    lines: dict[str, tuple[int, int]] = {}
    """By `file:line`: allocations and their bytes, as the allocator rounds them."""


def describe() -> Memory:
    """Returns the memory of this process. While tracemalloc runs, Python does not report its allocator: those fields are 0."""
    is_tracing = tracemalloc.is_tracing()
    python = "" if is_tracing else _python_stats()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    heap = libc.mallinfo2()
    memory = Memory(
        rss=int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        objects=0 if is_tracing else _number(r"# bytes in allocated blocks\s+=\s+([\d,]+)", python),
        arenas=0 if is_tracing else _number(r"\d arenas \* \d+ bytes/arena\s+=\s+([\d,]+)", python),
        malloc_used=heap.uordblks,
        malloc_heap=heap.arena,
        mapped=heap.hblkhd,
        lines=_lines(tracemalloc.take_snapshot()) if is_tracing else {},
    )
    if os.environ.get("MEMORY_TRACE") and not is_tracing:
        tracemalloc.start()
    return memory


def _python_stats() -> str:
    """Returns what Python's allocator prints to file descriptor 2."""
    with tempfile.TemporaryFile() as output:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(output.fileno(), 2)
            sys._debugmallocstats()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        output.seek(0)
        return output.read().decode()


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"this Python does not print {pattern}")
    return int(found[1].replace(",", ""))


def _lines(snapshot: tracemalloc.Snapshot) -> dict[str, tuple[int, int]]:
    lines: dict[str, tuple[int, int]] = {}
    for trace in snapshot.traces:
        frame, size = trace.traceback[0], trace.size
        name = f"{frame.filename}:{frame.lineno}"
        count, total = lines.get(name, (0, 0))
        lines[name] = count + 1, total + (-(-size // ALIGNMENT) * ALIGNMENT if size <= MAX_SMALL else size)
    return lines


def _write(*_: Any) -> None:
    gc.collect()
    path = Path(os.environ["MEMORY_PROBE"])
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(describe()))
    partial.rename(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, _write)
    sys.argv[0] = "service"
    runpy.run_module("service", run_name="__main__")
