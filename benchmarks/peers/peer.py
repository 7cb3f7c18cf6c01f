"""What the runner asks of a server that it measures."""

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
"""Where all that is installed for a benchmark goes; `make clean` removes it."""

STARTS = 3.0
"""Seconds that a server may go on starting after it accepts connections."""
LOOK = 0.1
"""Seconds between two looks at whether it does."""


class UnavailableError(Exception):
    """This peer is not to be had here; the text says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started."""

    line: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A server that accepts connections."""

    port: int
    server: Program
    """The one whose time and memory are measured."""
    aside: tuple[Program, ...] = ()
    """What it needs beside it, on the client's core: its cost is not the server's."""

    def usage(self) -> Usage:
        """Of the server. Raises FailedError when it has ended."""
        return self.server.usage()

    async def at_rest(self) -> None:
        """Returns when its start is over: the server takes no more than a hundredth of a core, or STARTS seconds have passed."""
        taken = self.usage().cpu
        for _ in range(round(STARTS / LOOK)):
            await asyncio.sleep(LOOK)
            before, taken = taken, self.usage().cpu
            if taken - before <= LOOK / 100:
                return

    async def end(self) -> None:
        """Ends it and what stands beside it."""
        for program in (self.server, *self.aside):
            await program.end()


class Peer(ABC):
    """A server in the configuration that its own documentation recommends for production: no compression, no logs."""

    name: ClassVar[str]
    title: str
    """For tables; asked for once it is available."""

    def available(self) -> str | None:
        """None if it can be started now; else why not, in one line. Installs nothing."""
        return None

    def install(self) -> None:  # noqa: B027  # most have nothing to install
        """Installs what it needs, by package name and pinned version, if it is not there. Raises UnavailableError."""

    @abstractmethod
    def version(self) -> str:
        """What is measured; called once it is available."""

    @abstractmethod
    def command(self, case: Case, port: int, folder: Path) -> Command:
        """How it is started for this case, on this port of loopback; writes what it reads into `folder`."""

    @abstractmethod
    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Its part of the job file: how to connect, to join room `%r` and to publish to it."""

    def values(self, case: Case) -> Iterable[str]:
        """A value for each connection, `%v` of the job file; none if there is nothing of the kind."""
        return ()

    def vitals(self, folder: Path) -> Counts:
        """What it says of itself at this moment; nothing if it says nothing. Raises FailedError if it does not answer."""
        return {}

    async def start(self, case: Case, port: int, folder: Path, cores: Cores) -> Started:
        """Starts it and waits until it accepts connections. Raises FailedError."""
        return Started(port, await self.run(self.command(case, port, folder), port, folder, cores.server))

    async def run(self, command: Command, port: int, folder: Path, core: int) -> Program:
        """Starts one program of it and waits for its port. Raises FailedError, and leaves nothing behind then."""
        program = await Program.start(
            self.title, command.line, core=core, log=folder / "log", cwd=command.cwd or folder, env=command.env
        )
        try:
            await program.listening(port)
        except BaseException:
            await program.end()
            raise
        return program
