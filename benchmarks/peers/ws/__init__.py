"""Node.js with the package `ws`, the WebSocket server that most others on Node.js stand on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import NodePackages
from benchmarks.peers.peer import Command, Peer

_PACKAGES = NodePackages()


class NodeWs(Peer):
    """A set of sockets a room, and a loop of `send`; with the native `bufferutil`, as its README recommends."""

    name = "ws"
    title = "Node ws"

    def available(self) -> str | None:
        """Needs its packages."""
        return _PACKAGES.missing()

    def install(self) -> None:
        """With npm."""
        _PACKAGES.install()

    def version(self) -> str:
        """Of the package and of Node.js."""
        return _PACKAGES.version("ws")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Compresses only where that is what is measured."""
        env = {"PORT": str(port), "PING": f"{case.ping:g}", "DEFLATE": "1" if case.deflate else ""}
        return Command(("node", Path(__file__).parent / "server.js"), {**_PACKAGES.env, **env})

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """What is sent is what is delivered."""
        return [("path", "/?room=%r"), ("message", case.data())]
