"""Python with `python-socketio` on aiohttp, over its WebSocket transport only."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import PythonPackages
from benchmarks.peers.peer import Command, Peer
from benchmarks.peers.socketio import dialogue

_PACKAGES = PythonPackages("python-socketio", "python-socketio==5.18.1", "aiohttp==3.14.5", "uvloop==0.23.0")


class PythonSocketIO(Peer):
    """Its own rooms and its default manager, on uvloop."""

    name = "python-socketio"
    title = "python-socketio"

    def available(self) -> str | None:
        """Needs its packages."""
        return _PACKAGES.missing()

    def install(self) -> None:
        """With pip, into an environment of its own."""
        _PACKAGES.install()

    def version(self) -> str:
        """Of the package and of Python."""
        return _PACKAGES.version("python-socketio")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Port and ping interval are its arguments."""
        return Command((_PACKAGES.python, Path(__file__).parent / "server.py", str(port), f"{case.ping:g}"))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """That of Socket.IO."""
        return dialogue(case)
