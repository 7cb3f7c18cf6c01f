"""The bare epoll loop in C: one `send()` a delivery, nothing else. What a ratio of 1.0 is."""

from __future__ import annotations

from pathlib import Path

from benchmarks.build import BuildError, build
from benchmarks.cases import Case
from benchmarks.peers.peer import Command, Peer, UnavailableError


class Limit(Peer):
    """Takes the room from the path and checks nobody."""

    name = "limit"
    title = "bare C loop"

    def __init__(self) -> None:
        self._program: Path | None = None

    def available(self) -> str | None:
        """None once it is built."""
        return None if self._program is not None else "not built"

    def install(self) -> None:
        """Builds it, which takes a C compiler."""
        try:
            self._program = build() / "limit"
        except BuildError as error:
            raise UnavailableError(str(error)) from error

    def version(self) -> str:
        """It has no number."""
        return "of this checkout"

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its one argument is the port."""
        assert self._program is not None, "`install` builds it"
        return Command((self._program, str(port)))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """What is sent is what is delivered."""
        return [("path", "/?room=%r" + ("&echo=1" if case.kind == "echo" else "")), ("message", case.data())]
