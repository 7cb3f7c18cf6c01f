"""Node.js with Socket.IO, over its WebSocket transport only."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import NodePackages
from benchmarks.peers.peer import Command, Peer

_PACKAGES = NodePackages()


def dialogue(case: Case) -> list[tuple[str, str]]:
    """Engine.IO 4 and Socket.IO 5, shared with the Python server of the same protocol."""
    return [
        ("path", "/socket.io/?EIO=4&transport=websocket&room=%r"),
        ("open_expect", '0{"sid"'),
        ("open", "40"),
        ("joined_expect", '40{"sid"'),
        ("answer", "2\t3"),
        ("message", f'42["event",{case.data()}]'),
    ]


class SocketIO(Peer):
    """Its own rooms and its default adapter."""

    name = "socketio"
    title = "Socket.IO"

    def available(self) -> str | None:
        """Needs its packages."""
        return _PACKAGES.missing()

    def install(self) -> None:
        """With npm."""
        _PACKAGES.install()

    def version(self) -> str:
        """Of the package and of Node.js."""
        return _PACKAGES.version("socket.io")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its pings are text frames, which the client answers."""
        env = {"PORT": str(port), "PING": f"{case.ping:g}"}
        return Command(("node", Path(__file__).parent / "server.js"), {**_PACKAGES.env, **env})

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """An event named `event`."""
        return dialogue(case)
