"""Node.js with the package `ws`, the WebSocket server that most others on Node.js stand on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import NodePackages, Packaged
from benchmarks.peers.peer import Command


class NodeWs(Packaged):
    """A set of sockets a room, and a loop of `send`; with the native `bufferutil`, as its README recommends."""

    name = "ws"
    title = "Node ws"
    packages = NodePackages("ws")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Compresses only where that is what is measured."""
        env = {"PORT": str(port), "PING": f"{case.ping:g}", "DEFLATE": "1" if case.deflate else ""}
        return Command(("node", Path(__file__).parent / "server.js"), {**self.packages.env, **env})

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Delivers the sent text unchanged."""
        return [("path", "/?room=%r"), ("message", case.data())]
