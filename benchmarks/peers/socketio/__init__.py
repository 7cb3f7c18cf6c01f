"""Node.js with Socket.IO, over its WebSocket transport only."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import NodePackages, Packaged
from benchmarks.peers.peer import Command


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


class SocketIO(Packaged):
    """Uses its own rooms and default adapter."""

    name = "socketio"
    title = "Socket.IO"
    packages = NodePackages("socket.io")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Its pings are text frames that the client answers."""
        env = {"PORT": str(port), "PING": f"{case.ping:g}"}
        return Command(("node", Path(__file__).parent / "server.js"), {**self.packages.env, **env})

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """An event named `event`."""
        return dialogue(case)
