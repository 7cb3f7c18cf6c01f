"""Tidewire, started as a user starts it: `python -m service serve`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jwt
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import machine
from benchmarks.cases import Case
from benchmarks.figures import Counts
from benchmarks.peers.packages import apt_install
from benchmarks.peers.peer import CHECKOUT, Command, Peer, Started
from benchmarks.processes import HOST, Cores, FailedError, free_port

CONTRACT = Path(__file__).parent / "contract.yaml"
SECRET = "only for benchmarks, and long enough for HS256"
"""Guards nothing."""
_TTL = 7_200
"""Lifetime of tokens in seconds, longer than any run."""
_PLENTY = {"per_second": 1_000_000, "burst": 1_000_000}
_MANY = 20_000
_SOURCES = frozenset({".py", ".lua"})


def tokens(secret: str, users: int) -> Iterable[str]:
    """Returns tokens of different users."""
    expires = int(time.time()) + _TTL
    for number in range(users):
        claims = {"iss": "tidewire", "aud": "tidewire", "sub": f"user-{number}", "exp": expires}
        yield jwt.encode(claims, secret, algorithm="HS256")


def redis_line(port: int, folder: Path) -> tuple[str, ...]:
    """Returns the command of a Redis that keeps nothing on disk."""
    return (
        "redis-server",
        "--bind",
        HOST,
        "--port",
        str(port),
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "no",
    )


def counts(metrics: str) -> Counts:
    """Parses the histograms of loop lag and garbage collection from metrics."""
    names = {"tidewire_loop_lag_seconds_bucket": "stall", "tidewire_gc_pause_seconds_bucket": "pause"}
    found: dict[str, dict[float, float]] = {name: {} for name in names.values()}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if name := names.get(sample.name):
                bound = float(sample.labels["le"])
                found[name][bound] = found[name].get(bound, 0.0) + sample.value  # of all generations
    return found


class Tidewire(Peer):
    """A checkout of Tidewire with the in-memory broker."""

    name = "tidewire"
    title = "Tidewire"

    def __init__(self, checkout: Path = CHECKOUT) -> None:
        self._checkout = checkout

    def version(self) -> str:
        """Returns the commit and the versions of Python and aiohttp."""
        git = ["git", "-C", str(self._checkout), "describe", "--always", "--dirty", "--exclude", "*"]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = done.stdout.strip() or "of no commit"
        return f"{commit}, Python {machine.python()}, aiohttp {version('aiohttp')}, uvloop {version('uvloop')}"

    def fingerprint(self) -> str:
        """Returns a hash of the service's files, to detect changes during a run."""
        digest = hashlib.sha256()
        for file in sorted((self._checkout / "service").rglob("*")):
            if file.suffix in _SOURCES:
                digest.update(f"{file}\0".encode() + file.read_bytes())
        return digest.hexdigest()

    def settings(self, case: Case, port: int) -> dict[str, Any]:
        """Returns the settings: the defaults, without limits on many connections from one machine."""
        rates = ("connection_rate", "user_rate", "ip_rate", "tenant_rate", "connect_rate_per_ip")
        counts = ("connections", "connections_per_ip", "pending")
        return {
            "host": HOST,
            "port": port,
            "ops_port": free_port(),
            "contract": str(CONTRACT),
            "auth": {"secret": SECRET},
            "limits": {**dict.fromkeys(rates, _PLENTY), **dict.fromkeys(counts, _MANY)},
            "deadlines": {"heartbeat": case.ping},
            **({"rollout": {"accept_rate": _PLENTY}} if self._bounds_upgrades() else {}),
            "log": {"level": "warning", "format": "json"},
            **({"compression": {"enabled": True}} if case.deflate else {}),
        }

    def _bounds_upgrades(self) -> bool:
        """Returns whether the checkout, which may be older, has that setting."""
        return "accept_rate" in (self._checkout / "service/core/limits.py").read_text()

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Runs in the checkout, where `-m` searches first."""
        return self._serve(self.settings(case, port), folder)

    def _serve(self, settings: dict[str, Any], folder: Path) -> Command:
        file = folder / "tidewire.yaml"
        file.write_text(yaml.safe_dump(settings))
        return Command((sys.executable, "-m", "service", "serve", "--config", file), cwd=self._checkout)

    def vitals(self, folder: Path) -> Counts:
        """Reads loop lag, sampled each 0.25 s, and garbage collection times from its metrics."""
        port = yaml.safe_load((folder / "tidewire.yaml").read_text())["ops_port"]
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as response:
                return counts(response.read().decode())
        except OSError as error:
            raise FailedError(f"{self.title} does not answer for its metrics: {error}") from None

    def values(self, case: Case) -> Iterable[str]:
        """Returns tokens; each connection is a different user."""
        return tokens(SECRET, case.everyone)

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Sends token and channel with the upgrade. `ready` follows `welcome`, as in the client library, or is in the address."""
        # Without an id nobody is waiting for an ack: what a publisher does that can lose an ephemeral event.
        waits = case.kind == "echo" or case.event == "durable"
        named = '"id":"%i",' if waits else ""
        if not case.joins:
            return [
                ("path", "/ws"),
                ("subprotocol", "tidewire.v1"),
                ("header", "Authorization: Bearer %v"),
                ("joined_expect", '"type":"welcome"'),
            ]
        if case.ready:
            return [
                ("path", "/ws?channels=room:%r&ready=1"),
                ("subprotocol", "tidewire.v1"),
                ("header", "Authorization: Bearer %v"),
                ("joined_expect", '"type":"subscribed"'),
            ]
        return [
            ("path", "/ws?channels=room:%r"),
            ("subprotocol", "tidewire.v1"),
            ("header", "Authorization: Bearer %v"),
            ("open_expect", '"type":"welcome"'),
            ("open", '{"type":"ready"}'),
            ("joined_expect", '"type":"subscribed"'),
            ("message", f'{{"type":"bench.{case.event}","channel":"room:%r",{named}"data":{case.data()}}}'),
            *([("echo_expect", '"type":"ack"')] if case.kind == "echo" else []),
        ]


class TidewireThroughRedis(Tidewire):
    """Tidewire with Redis on the client's core."""

    name = "tidewire-redis"
    title = "Tidewire with Redis"

    def available(self) -> str | None:
        """Needs the server program."""
        return None if shutil.which("redis-server") else "needs redis-server (Debian: apt-get install redis-server)"

    def install(self) -> None:
        """Installs the system's Redis."""
        if self.available() is not None:
            apt_install("redis-server")

    def version(self) -> str:
        """Returns both versions."""
        done = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=False)
        number = next((word[2:] for word in done.stdout.split() if word.startswith("v=")), "unknown")
        return f"{super().version()}, Redis {number}"

    async def start(self, case: Case, port: int, folder: Path, cores: Cores) -> Started:
        """Starts Redis first, because the service waits for it."""
        beside = folder / "redis"
        beside.mkdir()
        redis_port = free_port()
        redis = await self.run(Command(redis_line(redis_port, beside)), redis_port, beside, cores.client)
        try:
            settings = self.settings(case, port) | {"broker": {"url": f"redis://{HOST}:{redis_port}"}}
            node = await self.run(self._serve(settings, folder), port, folder, cores.server)
        except BaseException:
            await redis.end()
            raise
        return Started(port, node, (redis,))
