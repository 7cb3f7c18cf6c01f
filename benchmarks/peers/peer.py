"""The interface of a measured server."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks.cases import Case
from benchmarks.figures import Counts
from benchmarks.processes import Cores, Program, Usage

CHECKOUT = Path(__file__).parents[2]
TOOLS = CHECKOUT / "build" / "bench"
"""The folder of all benchmark installations; `make clean` removes it."""

STARTS = 3.0
"""Maximum seconds from a server's first accept until it is idle."""
LOOK = 0.1
"""Polling interval in seconds."""


class UnavailableError(Exception):
    """The peer is not available; the text has the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class Command:
    """The command of a server."""

    line: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A server that accepts connections."""

    port: int
    server: Program
    """The measured program."""
    aside: tuple[Program, ...] = ()
    """Helper programs on the client's core, which are not measured."""

    def usage(self) -> Usage:
        """Returns the server's resources. Raises FailedError if it has ended."""
        return self.server.usage()

    async def at_rest(self) -> None:
        """Waits until the server uses at most 1 % of a core, or for STARTS seconds."""
        taken = self.usage().cpu
        for _ in range(round(STARTS / LOOK)):
            await asyncio.sleep(LOOK)
            before, taken = taken, self.usage().cpu
            if taken - before <= LOOK / 100:
                return

    async def end(self) -> None:
        """Ends the server and its helpers."""
        for program in (self.server, *self.aside):
            await program.end()


class Peer(ABC):
    """A server, configured as its documentation recommends for production: no compression, no logs."""

    name: ClassVar[str]
    title: str
    """Title in tables; valid once it is available."""

    def available(self) -> str | None:
        """Returns None if it can be started now, otherwise the reason in one line. Installs nothing."""
        return None

    def install(self) -> None:  # noqa: B027  # most have nothing to install
        """Installs missing packages by name and pinned version. Raises UnavailableError."""

    @abstractmethod
    def version(self) -> str:
        """Returns the measured version; valid once it is available."""

    @abstractmethod
    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Returns the command for this case and port; writes its files into `folder`."""

    @abstractmethod
    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Returns its lines of the job file: connect, join room `%r`, publish."""

    def values(self, case: Case) -> Iterable[str]:
        """Returns a value for each connection, `%v` of the job file; empty if not needed."""
        return ()

    def vitals(self, folder: Path) -> Counts:
        """Returns its own metrics, if it has any. Raises FailedError if it does not answer."""
        return {}

    async def start(self, case: Case, port: int, folder: Path, cores: Cores) -> Started:
        """Starts the server and waits until it accepts connections. Raises FailedError."""
        return Started(port, await self.run(self.command(case, port, folder), port, folder, cores.server))

    async def run(self, command: Command, port: int, folder: Path, core: int) -> Program:
        """Starts one program and waits for its port. Raises FailedError and then ends the program."""
        program = await Program.start(
            self.title, command.line, core=core, log=folder / "log", cwd=command.cwd or folder, env=command.env
        )
        try:
            await program.listening(port)
        except BaseException:
            await program.end()
            raise
        return program
