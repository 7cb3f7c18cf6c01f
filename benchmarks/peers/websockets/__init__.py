"""Python with the package `websockets` and its `broadcast`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import Packaged, PythonPackages
from benchmarks.peers.peer import Command


class Websockets(Packaged):
    """On uvloop, compression off, as its pages on performance recommend."""

    name = "websockets"
    title = "websockets"
    packages = PythonPackages("websockets")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its arguments are port and ping interval."""
        return Command((self.packages.python, Path(__file__).parent / "server.py", str(port), f"{case.ping:g}"))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Delivers the sent text unchanged."""
        return [("path", "/%r"), ("message", case.data())]
