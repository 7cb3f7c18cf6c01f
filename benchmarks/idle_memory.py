"""What an idle connection costs in memory: `python -m benchmarks.idle_memory`.

Prints three tables, in bytes a connection:

1. The memory of the server's process, by allocator. The rows add up to the growth of its RSS.
2. Who holds it: the lines of code that allocated most, by tracemalloc.
3. The kernel's memory. Both ends of a connection are on this machine, so it says which part is the server's.

With more connections than one process may have, it starts several servers, each with a client of its own. Reading the kernel's
caches needs root; without it, the third table has only the sums.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from benchmarks import load
from benchmarks.build import build
from benchmarks.cases import PING, WORKLOADS, Case
from benchmarks.measuring import Stage
from benchmarks.memory_probe import Memory
from benchmarks.peers.peer import TOOLS, Command, Started
from benchmarks.peers.tidewire import Tidewire
from benchmarks.processes import PAGE, Cores, FailedError, free_port

RESERVE = 1_000
"""Descriptors of a process that are left for other things than connections."""
MAX_OF_SERVER = 17_000
"""Connections of one server."""
FOREVER = 3_600.0
"""Seconds of the idle phase. The clients are ended before."""
DESCRIBED = 60.0
"""Timeout in seconds for a server's description of its memory."""
SHOWN_LINES = 40
MIN_SHOWN = 0.05
"""Objects a connection below which a cache of the kernel is not shown."""
CLIENT_ONLY = frozenset({"tcp_bind_bucket", "tcp_bind2_bucket"})
"""Caches of which a server has one object for its port, and a client one for each connection."""
NETWORK = (
    "TCP",
    "sock_inode_cache",
    "dentry",
    "filp",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
    "request_sock_TCP",
    "skbuff_head_cache",
    "skbuff_small_head",
    "skbuff_fclone_cache",
)
"""Caches of the kernel for sockets. Other programs change the other ones."""


class Probed(Tidewire):
    """Tidewire that describes its memory."""

    def __init__(self, *, traced: bool) -> None:
        super().__init__()
        self._traced = traced

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Runs the service under `memory_probe`."""
        command = super().command(case, port, folder)
        env = {"MEMORY_PROBE": str(folder / "memory"), **({"MEMORY_TRACE": "1"} if self._traced else {})}
        line = [word if word != "service" else "benchmarks.memory_probe" for word in command.line]
        return replace(command, line=line, env=env)


async def memory_of(started: Started, folder: Path) -> Memory:
    """Asks a server of `Probed` for its memory. Raises FailedError."""
    file = folder / "memory"
    file.unlink(missing_ok=True)
    started.server.process.send_signal(signal.SIGUSR2)
    for _ in range(round(DESCRIBED / 0.05)):
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=Memory)
        started.usage()  # raises if it has ended
        await asyncio.sleep(0.05)
    raise FailedError(f"the server did not describe its memory within {DESCRIBED:g} s")


class Kernel(msgspec.Struct):
    """The kernel's memory, in bytes."""

    meminfo: dict[str, int]
    tcp: int
    """Buffers of all TCP connections."""
    caches: dict[str, tuple[int, int, int]]
    """By name: objects in use, bytes of one, and bytes of the whole cache. Empty for a user who may not read them."""

    @classmethod
    def now(cls) -> Kernel:
        """Reads /proc."""
        meminfo = {}
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, value = line.split(":")
            meminfo[name] = int(value.split()[0]) * (1024 if value.endswith("kB") else 1)
        sockets = next(
            line.split() for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")
        )
        caches = {}
        try:
            for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
                name, active, _, size, _, pages, *rest = line.split()
                caches[name] = int(active), int(size), int(rest[-2]) * int(pages) * PAGE
        except PermissionError:
            pass
        return cls(meminfo, int(sockets[sockets.index("mem") + 1]) * PAGE, caches)


class Measured(msgspec.Struct):
    """Growths from no connection to all, of all servers together."""

    connections: int
    before: list[Memory]
    after: list[Memory]
    kernel_before: Kernel
    kernel_after: Kernel


async def measure(connections: int, folder: Path, cores: Cores, *, traced: bool) -> Measured:
    """Connects clients to as many servers as they need, and compares memory before and after. Raises FailedError."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = min(MAX_OF_SERVER, allowed - RESERVE)
    parts = [min(each, connections - start) for start in range(0, connections, each)]
    peer = Probed(traced=traced)
    async with AsyncExitStack() as stack:
        servers = []
        for number, part in enumerate(parts):
            place = folder / str(number)
            place.mkdir(parents=True, exist_ok=True)
            case = replace(
                WORKLOADS["idle"].cases[0], connections=part, rooms=max(1, part // 10), seconds=FOREVER, ping=PING
            )
            started = await peer.start(case, free_port(), place, cores)
            stack.push_async_callback(started.end)
            await started.at_rest()
            servers.append((started, place, case))
        before = [await memory_of(started, place) for started, place, _ in servers]
        kernel_before = Kernel.now()
        for started, place, case in servers:
            job = Stage._job(case, peer, started.port, place)
            await _connect(job, cores, stack)
        for started, _, _ in servers:
            await started.at_rest()
        kernel_after = Kernel.now()
        after = [await memory_of(started, place) for started, place, _ in servers]
        return Measured(connections, before, after, kernel_before, kernel_after)


async def _connect(job: Path, cores: Cores, stack: AsyncExitStack) -> None:
    """Starts a client, and returns when all its connections have joined. The stack ends it."""
    joined = asyncio.Event()
    client = asyncio.create_task(
        load.run(build() / "load", job, core=cores.client, seconds=FOREVER, begins=joined.set, ends=lambda: None)
    )

    async def end() -> None:
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)

    stack.push_async_callback(end)
    waiting = asyncio.create_task(joined.wait())
    try:
        await asyncio.wait((client, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if client.done():
        client.result()  # says why
        raise FailedError("the client ended too early")


def _row(name: str, *cells: object) -> str:
    return f"| {name} | {' | '.join(str(cell) for cell in cells)} |"


def process_table(measured: Measured) -> list[str]:
    """The rows of the first table, which add up."""

    def growth(name: str) -> float:
        total: int = sum(getattr(memory, name) for memory in measured.after)
        before: int = sum(getattr(memory, name) for memory in measured.before)
        return (total - before) / measured.connections

    objects, used, mapped = growth("objects"), growth("malloc_used"), growth("mapped")
    python_free, malloc_free = growth("arenas") - objects, growth("malloc_heap") - used
    rss = growth("rss")
    rows = {
        "objects of up to 512 bytes": objects,
        "free blocks and headers of Python's allocator": python_free,
        "larger objects and libuv's handles (malloc)": used,
        "free blocks of malloc": malloc_free,
        "large tables (mapped)": mapped,
        "not touched yet, or of no allocator": rss - objects - python_free - used - malloc_free - mapped,
        "RSS": rss,
    }
    return ["| memory of the process | bytes a connection |", "| --- | ---: |"] + [
        _row(name, round(value)) for name, value in rows.items()
    ]


def line_table(measured: Measured) -> list[str]:
    """The rows of the second table: the lines that hold most, all other lines, and the sum."""
    held: dict[str, tuple[int, int]] = {}
    for memory in measured.after:
        for line, (count, size) in memory.lines.items():
            name = _short(line)
            before = held.get(name, (0, 0))
            held[name] = before[0] + count, before[1] + size
    connections = measured.connections
    most = sorted(held, key=lambda line: -held[line][1])
    rows = [
        _row(line, f"{held[line][0] / connections:.2f}", f"{held[line][1] / connections:.1f}")
        for line in most[:SHOWN_LINES]
    ]
    rest = most[SHOWN_LINES:]
    rows.append(
        _row(
            "all other lines",
            f"{sum(held[line][0] for line in rest) / connections:.2f}",
            f"{sum(held[line][1] for line in rest) / connections:.1f}",
        )
    )
    rows.append(_row("sum", "", f"{sum(size for _, size in held.values()) / connections:.1f}"))
    return ["| allocated by | allocations a connection | bytes a connection |", "| --- | ---: | ---: |", *rows]


def _short(line: str) -> str:
    """Names a line by the path below its package. Code without frames of Python is uvloop's."""
    if "/asyncio/runners.py" in line:
        return "uvloop and libuv (transport, handle, list of writes, number of the file)"
    if "/weakref.py" in line:
        return "uvloop's table of transports (weakref.py)"
    for root in ("/site-packages/", "/service/"):
        if root in line:
            return (root if root == "/service/" else "/").lstrip("/") + line.rpartition(root)[2]
    return line.rpartition("/lib/")[2]


def kernel_table(measured: Measured) -> list[str]:
    """The rows of the third table."""
    before, after, connections = measured.kernel_before, measured.kernel_after, measured.connections
    rows, of_server, of_both = [], 0.0, 0.0
    for name in NETWORK:
        if name not in after.caches:
            continue
        objects = (after.caches[name][0] - before.caches[name][0]) / connections
        size = (after.caches[name][2] - before.caches[name][2]) / connections
        if objects < MIN_SHOWN:
            continue
        share = 0.0 if name in CLIENT_ONLY else size / 2
        of_server += share
        of_both += size
        rows.append(_row(name, after.caches[name][1], f"{objects:.2f}", round(size), round(share)))
    rows.append(_row("sum of these caches", "", "", round(of_both), round(of_server)))
    rows.append(_row("buffers (TCP mem)", "", "", *_halves((after.tcp - before.tcp) / connections)))
    for name in ("Slab", "SUnreclaim", "PageTables", "KernelStack", "VmallocUsed", "Percpu"):
        growth = (after.meminfo[name] - before.meminfo[name]) / connections
        rows.append(_row(f"{name} (whole machine)", "", "", *_halves(growth)))
    header = "| kernel | bytes of an object | objects a connection | bytes of both ends | of the server's end |"
    return [header, "| --- | ---: | ---: | ---: | ---: |", *rows]


def _halves(value: float) -> tuple[int, int]:
    return round(value), round(value / 2)


async def measured(asked: argparse.Namespace) -> Iterable[str]:
    """Measures, and returns the lines of the report."""
    cores = Cores.of_this_machine()
    plain = await measure(asked.connections, asked.output / "plain", cores, traced=False)
    report = [f"{asked.connections} idle connections, {len(plain.after)} servers", "", *process_table(plain)]
    if not asked.no_lines:
        traced = await measure(min(asked.connections, 10_000), asked.output / "traced", cores, traced=True)
        report += ["", *line_table(traced)]
    return [*report, "", *kernel_table(plain)]


def main(words: Sequence[str] | None = None) -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle_memory", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--no-lines", action="store_true", help="leave out the second table, which takes a second run")
    parser.add_argument("--output", type=Path, default=TOOLS / "idle_memory", help="folder for files (%(default)s)")
    asked = parser.parse_args(words)
    try:
        sys.stdout.write("\n".join(asyncio.run(measured(asked))) + "\n")
    except FailedError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
