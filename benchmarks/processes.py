"""Programs on a core of their own, looked at from outside, and ended with all that they started."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
START = 30.0
"""Seconds that a server may take until it accepts connections."""
END = 3.0
"""Seconds that a program may take to end when it is asked to; then it is killed."""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
_PORTS = range(15_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections."""
_POLL = 0.02
"""Seconds between two looks at another process, which has no event to wait for."""


class FailedError(Exception):
    """A program ended, or did not do in time what it was started for; the text ends with what it wrote last."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the server runs, and where all else does: neither then measures the other's waiting."""

    server: int
    client: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first two that we may use; the same one twice where there is only one."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)])

    @property
    def apart(self) -> bool:
        """Whether there are two."""
        return self.server != self.client


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started in the block runs on that core: affinity is inherited."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program and its descendants take."""

    cpu: float
    """Seconds of processor time so far, the kernel's on its behalf and that of descendants which ended too."""
    rss: int
    """Bytes in memory now; pages that descendants share count for each."""


def usage(pid: int) -> Usage:
    """As the kernel counts it, in nanoseconds where it tells them, else in steps of 10 ms; and of 4 KiB. Raises
    ProcessLookupError when there is no such process."""
    processes = _processes()
    parents = {number: int(fields[1]) for number, fields in processes.items()}
    if pid not in processes:
        raise ProcessLookupError(f"no process {pid}")
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    cpu = rss = 0.0
    for member in family:
        fields = processes[member]
        own, ended = sum(map(int, fields[11:13])) / TICKS, sum(map(int, fields[13:15])) / TICKS
        cpu += max(own, _of_threads(member)) + ended
        rss += int(fields[21]) * PAGE
    return Usage(cpu, int(rss))


def _of_threads(pid: int) -> float:
    """Seconds of processor time of a process's threads, without those that have ended."""
    nanoseconds = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _processes() -> dict[int, list[str]]:
    """Every process with the fields of its `stat` from the state on (proc(5))."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # One that ended while we looked is none. A name may hold anything, brackets too; the fields behind it may not.
            with suppress(OSError):
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    return found


def _members(group: int) -> list[int]:
    """Of a process group, those that have not ended: one that waits to be reaped has."""
    return [pid for pid, fields in _processes().items() if int(fields[2]) == group and fields[0] not in "ZX"]


@dataclass(slots=True)
class Program:
    """One that runs, in a process group of its own; what it writes goes to a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    _ended: bool = field(default=False, init=False)

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        *,
        core: int,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Starts it on that core, with `env` on top of ours. Raises FailedError when it cannot be run."""
        with log.open("ab") as output, on_core(core):
            try:
                process = await asyncio.create_subprocess_exec(
                    *map(str, command),
                    cwd=cwd,
                    env={**_environment(), **(env or {})},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise FailedError(f"{name} could not be started: {error}") from error
        return cls(name, process, log)

    def usage(self) -> Usage:
        """What it and its descendants take. Raises FailedError when it has ended."""
        try:
            if self.process.returncode is None:
                return usage(self.process.pid)
        except ProcessLookupError:
            pass
        raise self._failed("ended")

    async def listening(self, port: int) -> None:
        """Waits until it accepts connections. Raises FailedError when it ends or that takes too long."""
        try:
            async with asyncio.timeout(START):
                while not await _accepts(port):
                    if self.process.returncode is not None:
                        raise self._failed(f"ended with {self.process.returncode} before it listened")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise self._failed(f"did not listen on port {port} within {START:g} s") from None

    async def end(self) -> None:
        """Ends it and all of its group. Does nothing the second time."""
        if self._ended:
            return
        self._ended = True
        try:
            if self.process.returncode is None:
                self.process.terminate()
                async with asyncio.timeout(END):
                    await self.process.wait()
        except (TimeoutError, ProcessLookupError):
            pass
        finally:
            # The group outlives its first process where that left something behind.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        for _ in range(round(END / _POLL)):
            if not _members(self.process.pid):
                return
            await asyncio.sleep(_POLL)

    def _failed(self, what: str) -> FailedError:
        written = self.log.read_text(errors="replace")[-800:].strip()
        return FailedError(f"{self.name} {what}" + (f"; it wrote last:\n{written}" if written else ""))


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def _environment() -> dict[str, str]:
    """Ours without what would change the service's settings or asyncio's mode."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHON"))}
