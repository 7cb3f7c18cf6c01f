"""A command of the service in a process of its own, as its users run it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
SOON = 60.0
"""Seconds that any one step of other processes may take, on a machine where others work too."""


@dataclass
class Command:
    """A command in a process of its own, and what it wrote."""

    arguments: tuple[str, ...]
    settings: Mapping[str, str]
    max_files: int | None = None
    """Its hard limit of open files, if it gets one of its own."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """Lines that are no JSON have the level `raw`."""
    _process: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None
    _written: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHONASYNCIO"))
        }
        limited = () if self.max_files is None else ("sh", "-c", f'ulimit -n {self.max_files} && exec "$@"', "sh")
        self._process = await asyncio.create_subprocess_exec(
            *(*limited, sys.executable, "-m", *self.arguments),
            cwd=CHECKOUT,
            env={**kept, **{f"TIDEWIRE_{name}": value for name, value in self.settings.items()}},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        output = self.process.stdout
        assert output is not None
        async for line in output:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"level": "raw", "event": line.decode(errors="replace").rstrip()}
            self.log.append(entry)
            self._written.set()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def told(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines that say this."""
        return [
            entry
            for entry in self.log
            if entry["event"] == event and all(entry.get(name) == value for name, value in fields.items())
        ]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds of what it has written."""
        try:
            async with asyncio.timeout(SOON):
                while not holds():
                    self._written.clear()
                    await self._written.wait()
        except TimeoutError:
            raise AssertionError(f"it did not say so within {SOON:g} s:\n{self.text()}") from None

    async def ended(self) -> int:
        """Its exit status, once no process is left that could write where it wrote."""
        assert self._reader is not None
        async with asyncio.timeout(SOON):
            status = await self.process.wait()
            await self._reader
        return status

    async def end(self) -> None:
        """Kills what is left of it, also workers whose parent has gone."""
        if self._process is None:
            return
        if self.process.returncode is None:
            self.process.kill()
        for pid in {entry["pid"] for entry in self.log if "pid" in entry}:
            if is_alive(pid) and self.arguments[0] in command_line(pid):
                os.kill(pid, signal.SIGKILL)
        await self.ended()

    def text(self) -> str:
        return "\n".join(json.dumps(entry)[:400] for entry in self.log[-25:])


@asynccontextmanager
async def command(*arguments: str, **settings: str) -> AsyncIterator[Command]:
    async with _run(Command(arguments, settings)) as started:
        yield started


@asynccontextmanager
async def limited_command(max_files: int, *arguments: str, **settings: str) -> AsyncIterator[Command]:
    """As `command`, in a process that may open so many files."""
    async with _run(Command(arguments, settings, max_files)) as started:
        yield started


@asynccontextmanager
async def _run(started: Command) -> AsyncIterator[Command]:
    try:
        await started.start()
        yield started
    finally:
        await started.end()


def command_line(pid: int) -> list[str]:
    """The arguments of a process, by which it is recognized: the id may have been reused. Empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """Whether it runs: who has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
