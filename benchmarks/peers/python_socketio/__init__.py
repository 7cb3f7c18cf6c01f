"""Python with `python-socketio` on aiohttp, over its WebSocket transport only."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import Packaged, PythonPackages
from benchmarks.peers.peer import Command
from benchmarks.peers.socketio import dialogue


class PythonSocketIO(Packaged):
    """Uses its own rooms and default manager, on uvloop."""

    name = "python-socketio"
    title = "python-socketio"
    packages = PythonPackages("python-socketio")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its arguments are port and ping interval."""
        return Command((self.packages.python, Path(__file__).parent / "server.py", str(port), f"{case.ping:g}"))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """The same as Socket.IO."""
        return dialogue(case)
