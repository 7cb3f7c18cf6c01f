"""Centrifugo, with its JSON protocol, its memory engine and no history."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import go_install
from benchmarks.peers.peer import TOOLS, Command, Peer
from benchmarks.peers.tidewire import tokens

_MODULE, _VERSION = "github.com/centrifugal/centrifugo/v6", "v6.9.1"
_SECRET = "only for benchmarks"


class Centrifugo(Peer):
    """Clients authenticate with a token, as Tidewire's do, and publish to the channel that they have joined."""

    name = "centrifugo"
    title = "Centrifugo"

    def available(self) -> str | None:
        """Needs the program, on the path or built by `install`."""
        return None if self._program() else "the program centrifugo is not installed"

    def install(self) -> None:
        """Builds it with Go, where no package has put it on the path."""
        if self._program() is None:
            go_install(_MODULE, _VERSION)

    def version(self) -> str:
        """As it says itself."""
        done = subprocess.run([str(self._program()), "version"], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Go takes as many threads as it may use cores: one."""
        config = {
            "http_server": {"address": "127.0.0.1", "port": port},
            "log": {"level": "none"},
            "client": {
                "token": {"hmac_secret_key": _SECRET},
                "ping_interval": f"{case.ping:g}s",
                "pong_timeout": f"{min(8.0, case.ping * 0.8):g}s",
                "channel_limit": 128,
            },
            "channel": {
                "without_namespace": {"allow_subscribe_for_client": True, "allow_publish_for_subscriber": True}
            },
        }
        file = folder / "centrifugo.json"
        file.write_text(json.dumps(config))
        return Command((str(self._program()), "--config", file), {"GOMAXPROCS": "1"})

    def values(self, case: Case) -> Iterable[str]:
        """Tokens: every connection is another user."""
        return tokens(_SECRET, case.everyone)

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Connect, subscribe, publish; an empty object is its ping, and the answer to it."""
        return [
            ("path", "/connection/websocket"),
            ("open", '{"id":1,"connect":{"token":"%v"}}'),
            ("open_expect", '"connect":'),
            ("open", '{"id":2,"subscribe":{"channel":"room%r"}}'),
            ("joined_expect", '"subscribe":'),
            ("answer", "{}\t{}"),
            ("message", f'{{"id":%i,"publish":{{"channel":"room%r","data":{case.data()}}}}}'),
        ]

    def _program(self) -> str | None:
        built = TOOLS / "bin" / "centrifugo"
        return str(built) if built.exists() else shutil.which("centrifugo")
