"""Runs programs on a fixed core, measures them, and ends them with all their children."""

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
"""Timeout in seconds until a server accepts connections."""
END = 3.0
"""Seconds from SIGTERM to SIGKILL."""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
_PORTS = range(15_000, 32_000)
"""Ports below the kernel's range for outgoing connections."""
_POLL = 0.02
"""Polling interval in seconds for another process."""


class FailedError(Exception):
    """A program ended or timed out; the text has its last output."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the server, and the core of everything else."""

    server: int
    client: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Returns the first two usable cores, or the only one twice."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)])

    @property
    def apart(self) -> bool:
        """Whether there are two cores."""
        return self.server != self.client


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Starts the block's programs on a core, by inherited affinity."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Returns a free port of loopback."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources of a program and its descendants."""

    cpu: float
    """CPU seconds so far, user and system, including ended descendants."""
    rss: int
    """Resident bytes now; shared pages count for each descendant."""


def usage(pid: int) -> Usage:
    """Returns the kernel's counts: CPU time in nanoseconds if available, otherwise in steps of 10 ms; memory in steps of 4 KiB.

    Raises ProcessLookupError if there is no such process.
    """
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
    """Returns the CPU seconds of a process's live threads."""
    nanoseconds = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _processes() -> dict[int, list[str]]:
    """Yields every process with the fields of its `stat`, from the state on (proc(5))."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # One that ended while we looked is none. A name may hold anything, brackets too; the fields behind it may not.
            with suppress(OSError):
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    return found


def _members(group: int) -> list[int]:
    """Returns the live processes of a group, without zombies."""
    return [pid for pid, fields in _processes().items() if int(fields[2]) == group and fields[0] not in "ZX"]


@dataclass(slots=True)
class Program:
    """A running program in its own process group, with its output in a file."""

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
        """Starts a program on a core, with additional `env`. Raises FailedError if it cannot run."""
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
        """Returns its resources and those of its descendants. Raises FailedError if it has ended."""
        try:
            if self.process.returncode is None:
                return usage(self.process.pid)
        except ProcessLookupError:
            pass
        raise self._failed("ended")

    async def listening(self, port: int) -> None:
        """Waits until it accepts connections. Raises FailedError if it ends or times out."""
        try:
            async with asyncio.timeout(START):
                while not await _accepts(port):
                    if self.process.returncode is not None:
                        raise self._failed(f"ended with {self.process.returncode} before it listened")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise self._failed(f"did not listen on port {port} within {START:g} s") from None

    async def end(self) -> None:
        """Ends the program and its process group. Harmless when repeated."""
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
    """Returns our environment without settings of the service or asyncio."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHON"))}
