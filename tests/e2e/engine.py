"""A proxy program with any number of fronts: started, told of endpoints that come and go, reloaded, ended with its children."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.e2e.front import Front
from tests.e2e.programs import program
from tests.stores.certificates import Certificates
from tests.stores.process import HOST, Server, free_port, until

AS_INSTALLED = 3
"""Seconds that stand for the idle time of a proxy that nobody has told anything: 60 s with nginx, 300 s with Envoy."""
END = 5.0
"""Seconds that a proxy may take to end by itself."""


class Engine(Server):
    """See the module. Subclasses say how each preset's words are carried out, the way that preset's controller does."""

    program = ""
    presets: tuple[str, ...] = ()
    """What controllers on this program carry out."""
    sticky_presets: tuple[str, ...] = ()
    older_presets: tuple[str, ...] = ()
    """`PRESET@VERSION`, as the controller at that version carries it out. Idle times are what differs."""
    """Those of them that the chart can make sticky."""

    def __init__(self, fronts: Sequence[Front], certificates: Certificates | None = None, *, linger: int = 60) -> None:
        """`linger`: seconds that connections may last after a reload, where the proxy has such a bound."""
        super().__init__(self.program)
        self.fronts = list(fronts)
        self.certificates = certificates
        self.linger = linger
        self.generation = 0

    @abstractmethod
    def _configure(self) -> None:
        """Writes the configuration for the fronts as they are now."""

    @abstractmethod
    async def _apply(self, front: Front) -> None:
        """Carries out that a front leads to other nodes now; returns once it does."""

    @abstractmethod
    async def reload(self) -> None:
        """Makes it take a configuration that has changed, the way its controller does; returns once it has."""

    @abstractmethod
    async def retire(self) -> None:
        """Begins its end, the way its pod's end does: what is open may last for a while."""

    async def lead(self, front: Front, nodes: Sequence[int]) -> None:
        """The endpoints of a front's Service have changed."""
        front.nodes = list(nodes)
        front.slots += [node for node in nodes if node not in front.slots]
        await self._apply(front)

    @property
    def combined(self) -> Path:
        """The server's certificate and key in one file."""
        assert self.certificates is not None
        path = self.folder / "server-and-key.pem"
        path.write_bytes(self.certificates.certificate.read_bytes() + self.certificates.key.read_bytes())
        return path

    def _prepare(self) -> None:
        for front in self.fronts:
            front.port = free_port()
        self._configure()

    def _executable(self) -> str:
        return str(program(self.program))

    async def _answers(self) -> bool:
        for front in self.fronts:
            try:
                _, writer = await asyncio.open_connection(HOST, front.port)
            except OSError:
                return False
            writer.transport.abort()
        return True

    def _kill(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        children = _descendants(process.pid)
        process.terminate()
        with suppress(Exception):  # whatever keeps it: it is killed next
            process.wait(END)
        super()._kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The processes that it has started, and theirs: nginx and HAProxy leave theirs behind when they are killed."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found


def workers(pid: int) -> set[int]:
    """The processes that a proxy's first one has started."""
    return set(_descendants(pid))


async def replaced(before: set[int], pid: int, what: str) -> None:
    """Waits until a proxy has a worker that it did not have before."""

    async def fresh() -> bool:
        return bool(workers(pid) - before)

    await until(fresh, what)
