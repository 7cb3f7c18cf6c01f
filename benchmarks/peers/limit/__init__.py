"""The bare epoll loop in C: one `send()` a delivery, nothing else. What a ratio of 1.0 is."""

from __future__ import annotations

from pathlib import Path

from benchmarks.build import build
from benchmarks.cases import Case
from benchmarks.peers.peer import Command, Peer


class Limit(Peer):
    """Takes the room from the path and checks nobody."""

    name = "limit"
    title = "bare C loop"

    def version(self) -> str:
        """It has no number."""
        return "of this checkout"

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its one argument is the port. It is compiled together with the load client, if that is needed."""
        return Command((build() / "limit", str(port)))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """What is sent is what is delivered."""
        return [("path", "/?room=%r" + ("&echo=1" if case.kind == "echo" else "")), ("message", case.data())]
