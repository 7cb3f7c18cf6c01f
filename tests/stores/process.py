"""Runs a server program for a test: starts it on a local port, waits for it, and always kills it by its pid."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
START = 60.0
"""Seconds until a server must answer, on a busy machine."""
_PORTS = range(15_000, 32_000)
"""Below the ports of outgoing connections: one of those could take ours during a restart."""
_ATTEMPTS = 5


class MissingProgramError(Exception):
    """A program that the tests need is missing; the message says what to install."""


class ServerFailedError(Exception):
    """A server has ended or did not answer in time; the message has the end of its log."""


def program(name: str, package: str) -> str:
    """Returns the path of a program of a Debian package."""
    path = shutil.which(name)
    if path is None:
        raise MissingProgramError(
            f"these tests need the program {name}: run scripts/setup.sh test (Debian: apt-get install {package})"
        )
    return path


def free_port() -> int:
    """Returns a free local port that no outgoing connection uses."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


async def until(holds: Callable[[], Awaitable[bool]], what: str, *, within: float = START) -> None:
    """Polls a condition of another process until it `holds`."""
    deadline = asyncio.timeout(within)
    try:
        async with deadline:
            while not await holds():  # noqa: ASYNC110  # another process sends no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise ServerFailedError(f"{what}: not within {within:g} s") from None


class Server(ABC):
    """A process with one port. As an async context it runs from start to end of the block, and leaves nothing behind.

    It belongs to no event loop: one that outlives a test can be used by the next.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @abstractmethod
    def _prepare(self) -> None:
        """Writes the program's files for the present port; called for each port that is tried."""

    @abstractmethod
    def _command_line(self) -> list[str]: ...

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether this process answers, and not another one on its port."""

    def _environment(self) -> dict[str, str]:
        return {}

    @property
    def folder(self) -> Path:
        """The folder of its data and log; deleted at the end."""
        assert self._folder is not None, f"{self.name} has not been started"
        return self._folder

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The newest process."""
        assert self._process is not None, f"{self.name} has not been started"
        return self._process

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return HOST, self.port

    @property
    def running(self) -> bool:
        """Whether the process exists, stopped or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def awake(self) -> bool:
        """Whether the process runs and is not stopped."""
        return self.running and not self._stopped

    @property
    def log(self) -> str:
        """Its log, over all restarts."""
        return (self.folder / "log").read_text(errors="replace")

    async def start(self) -> None:
        """Starts it on a free port and waits until it answers. The caller must call `end`."""
        self._folder = Path(tempfile.mkdtemp(prefix=f"tidewire-{self.name}-"))
        for attempt in range(_ATTEMPTS):
            self.port = free_port()
            try:
                self._prepare()
                await self._run()
            except ServerFailedError:
                # Another process may take the port before the server binds it.
                taken = "in use" in self.log
                self._kill()
                if taken and attempt + 1 < _ATTEMPTS:
                    continue
                self.end()
                raise
            except BaseException:
                self.end()
                raise
            return

    def end(self) -> None:
        """Kills it and deletes its folder. Does nothing the second time."""
        self._kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def kill(self) -> None:
        """Sends SIGKILL. On return it is dead and its port refuses connections; its data stays."""
        assert self.running, f"{self.name} is not running"
        self._kill()

    def stop_(self) -> None:
        """Sends SIGSTOP. On return it is stopped; its connections stay open, and the kernel accepts new ones."""
        assert self.running, f"{self.name} is not running"
        self.process.send_signal(signal.SIGSTOP)
        self._stopped = True
        # WNOWAIT leaves the state for the process object to reap.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def cont(self) -> None:
        """Sends SIGCONT: it continues."""
        self.process.send_signal(signal.SIGCONT)
        self._stopped = False

    async def restart(self) -> None:
        """Kills it if it runs, and starts it with the same data on the same port. Waits until it answers."""
        self._kill()
        await self._run()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _spawn(self) -> None:
        self._stopped = False
        command = self._command_line()
        if threading.current_thread() is threading.main_thread() and (setpriv := shutil.which("setpriv")):
            # The kernel kills the server with a killed test run. Not in other threads: there, it would also do so when the
            # thread ends.
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def _run(self) -> None:
        self._spawn()

        async def up() -> bool:
            if not self.running:
                raise ServerFailedError(f"{self.name} ended with {self.process.returncode}:\n{self.log[-2000:]}")
            return await self._answers()

        try:
            await until(up, f"{self.name} answers on port {self.port}")
        except ServerFailedError as error:
            if self.running:
                raise ServerFailedError(f"{error}:\n{self.log[-2000:]}") from None
            raise


class Group(ABC):
    """Servers that work together; an async context, as a single one."""

    def __init__(self) -> None:
        self._members: list[Server] = []

    @abstractmethod
    async def _build(self) -> None:
        """Starts the servers and waits until they work together."""

    async def _launch(self, *servers: Server) -> None:
        """Starts servers in parallel. The group ends them, even if one fails to start."""
        self._members += servers
        for result in await asyncio.gather(*(server.start() for server in servers), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def start(self) -> None:
        """Starts all servers. The caller must call `end`."""
        try:
            await self._build()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Kills all servers and deletes their folders."""
        for server in self._members:
            server.end()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
