"""uWebSockets (C++) through its Python binding `socketify`; the one for Node.js is in no package registry."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import Packaged, PythonPackages
from benchmarks.peers.peer import Command


class UWebSockets(Packaged):
    """Fans out by its own topics in C++; Python handles each message once."""

    name = "uws"
    title = "uWebSockets"
    packages = PythonPackages("socketify", wheels=False)

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its idle timeout, at least 8 s, sets the ping interval; it is the argument."""
        idle = max(8, round(case.ping) * 2)
        return Command((self.packages.python, Path(__file__).parent / "server.py", str(port), str(idle)))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Delivers the sent text unchanged."""
        return [("path", "/room/%r"), ("message", case.data())]
