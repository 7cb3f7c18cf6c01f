"""Centrifugo, with its JSON protocol, its memory engine and no history; or its engine alone, the library Centrifuge, under a
small server of ours (`server/`), where Centrifugo is not to be had. Tables name the one that it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import go_build, go_install
from benchmarks.peers.peer import TOOLS, Command, Peer, UnavailableError
from benchmarks.peers.tidewire import tokens

_MODULE, _VERSION = "github.com/centrifugal/centrifugo/v6", "v6.9.1"
_SECRET = "only for benchmarks, and long enough for HS256"
_SERVER = Path(__file__).parent / "server"
_SOURCES = ("go.mod", "go.sum", "main.go")


class Centrifugo(Peer):
    """Clients authenticate with a token, as with Tidewire, and publish to their channel."""

    name = "centrifugo"

    def __init__(self) -> None:
        self._look()

    def available(self) -> str | None:
        """Needs Centrifugo on the path, or a program built by `install`."""
        return None if self._centrifugo or self._engine else "the program centrifugo is not installed"

    def install(self) -> None:
        """Builds Centrifugo with Go, or a server on its engine if that fails. Raises UnavailableError if both fail."""
        if self.available() is None:
            return
        try:
            go_install(_MODULE, _VERSION)
        except UnavailableError as centrifugo:
            try:
                go_build(_SERVER, _built())
            except UnavailableError as engine:
                raise UnavailableError(f"{centrifugo}; its engine: {engine}") from None
        self._look()

    def version(self) -> str:
        """Returns its version; for the engine, says that it is not Centrifugo."""
        if self._centrifugo:
            # A program from `go install` says v0.0.0. Only this version is installed in that way.
            return _said(self._centrifugo, "version").replace("v0.0.0", _VERSION)
        return f"{_said(self._engine, '-version')}, under a server of ours: Centrifugo itself is not installed"

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Go uses one thread for its one core. Other settings are Centrifugo's defaults."""
        ping, pong = f"{case.ping:g}s", f"{min(8.0, case.ping * 0.8):g}s"
        if not self._centrifugo:
            flags = ("-port", str(port), "-ping", ping, "-pong", pong)
            return Command((str(self._engine), *flags), {"GOMAXPROCS": "1", "TOKEN_SECRET": _SECRET})
        config = {
            "http_server": {"address": "127.0.0.1", "port": port},
            "log": {"level": "none"},
            "client": {
                "token": {"hmac_secret_key": _SECRET},
                "ping_interval": ping,
                "pong_timeout": pong,
                "channel_limit": 128,
            },
            "channel": {
                "without_namespace": {"allow_subscribe_for_client": True, "allow_publish_for_subscriber": True}
            },
        }
        file = folder / "centrifugo.json"
        file.write_text(json.dumps(config))
        return Command((self._centrifugo, "--config", file), {"GOMAXPROCS": "1"})

    def values(self, case: Case) -> Iterable[str]:
        """Returns tokens; each connection is a different user."""
        return tokens(_SECRET, case.everyone)

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Connect, subscribe, publish; an empty object is a ping and its answer."""
        return [
            ("path", "/connection/websocket"),
            ("open", '{"id":1,"connect":{"token":"%v"}}'),
            ("open_expect", '"connect":'),
            ("open", '{"id":2,"subscribe":{"channel":"room%r"}}'),
            ("joined_expect", '"subscribe":'),
            ("answer", "{}\t{}"),
            ("message", f'{{"id":%i,"publish":{{"channel":"room%r","data":{case.data()}}}}}'),
        ]

    def _look(self) -> None:
        """Returns the available program, preferably Centrifugo."""
        installed, built = TOOLS / "bin" / "centrifugo", _built()
        self._centrifugo = str(installed) if installed.exists() else shutil.which("centrifugo")
        self._engine = built if built.exists() else None
        self.title = "Centrifuge (Centrifugo's engine)" if self._engine and not self._centrifugo else "Centrifugo"


def _built() -> Path:
    """The path of the built server; other sources have another path."""
    sources = b"".join((_SERVER / name).read_bytes() for name in _SOURCES)
    return TOOLS / "bin" / f"centrifuge-{hashlib.sha256(sources).hexdigest()[:12]}"


def _said(program: str | Path | None, word: str) -> str:
    done = subprocess.run([str(program), word], capture_output=True, text=True, check=False)
    return done.stdout.strip()
