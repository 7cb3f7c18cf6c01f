"""uWebSockets (C++) through its Python binding `socketify`; the one for Node.js is in no package registry."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import Packaged, PythonPackages
from benchmarks.peers.peer import Command


class UWebSockets(Packaged):
    """Fans out by its own topics, in C++; Python sees each message once."""

    name = "uws"
    title = "uWebSockets"
    packages = PythonPackages("socketify", wheels=False)

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """It pings as its idle timeout asks for, at 8 s and more; the argument is that timeout."""
        idle = max(8, round(case.ping) * 2)
        return Command((self.packages.python, Path(__file__).parent / "server.py", str(port), str(idle)))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """What is sent is what is delivered."""
        return [("path", "/room/%r"), ("message", case.data())]
