"""The plain epoll loop in C with one `send()` for each delivery: the ratio 1.0."""

from __future__ import annotations

from pathlib import Path

from benchmarks.build import build
from benchmarks.cases import Case
from benchmarks.peers.peer import Command, Peer


class Limit(Peer):
    """The bare C loop. The path of the address names the room; tokens are not checked."""

    name = "limit"
    title = "bare C loop"

    def version(self) -> str:
        """It has no version."""
        return "of this checkout"

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Compiles it if needed. Its argument is the port."""
        return Command((build() / "limit", str(port)))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Delivers the sent text unchanged."""
        return [("path", "/?room=%r" + ("&echo=1" if case.kind == "echo" else "")), ("message", case.data())]
