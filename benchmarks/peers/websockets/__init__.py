"""Python with the package `websockets` and its `broadcast`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import PythonPackages
from benchmarks.peers.peer import Command, Peer

_PACKAGES = PythonPackages("websockets", "websockets==17.4", "uvloop==0.23.0")


class Websockets(Peer):
    """On uvloop, compression off, as its pages on performance recommend."""

    name = "websockets"
    title = "websockets"

    def available(self) -> str | None:
        """Needs its packages."""
        return _PACKAGES.missing()

    def install(self) -> None:
        """With pip, into an environment of its own."""
        _PACKAGES.install()

    def version(self) -> str:
        """Of the package and of Python."""
        return _PACKAGES.version("websockets")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Port and ping interval are its arguments."""
        return Command((_PACKAGES.python, Path(__file__).parent / "server.py", str(port), f"{case.ping:g}"))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """What is sent is what is delivered."""
        return [("path", "/%r"), ("message", case.data())]
