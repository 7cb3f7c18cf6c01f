"""Nodes of the service, each a process of its own as an operator runs it, and what can be seen of them from outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp

from tests.faults.tokens import API_KEYS, SECRET
from tests.stores.process import free_port

CONTRACT = Path(__file__).parent / "contract.yaml"
CHECKOUT = Path(__file__).parents[2]
REPLY = 30.0
"""Seconds that one request may take, on a machine where others work too."""
START = 60.0
"""Seconds from the start of the process to its listening."""
ATTEMPTS = 5
"""Pairs of ports that are tried at a first start."""
LOOK = 0.1
"""Seconds between two looks at another process, which has no event to wait for."""
WIDE = 400
"""Characters of a line of a log that are shown."""
GAUGES = ("connections", "pending_connections", "subscriptions", "channels", "outbox_messages", "outbox_bytes")
"""What must be 0 when nobody is there."""
_PLENTY = {"PER_SECOND": "1000000", "BURST": "1000000"}
_LISTENING = "0A"
_BUCKET = re.compile(r'loop_lag_seconds_bucket\{le="([^"]+)"\}')


def environment(broker: str, port: int, ops_port: int, **settings: str) -> dict[str, str]:
    """The node's settings. Everyone comes from one machine and at once, so the caps are wide. Nobody is asked to move: clients go
    to the node that their scenario names."""
    rates = {
        f"{name}__{part}": value
        for name in (
            *("LIMITS__CONNECTION_RATE", "LIMITS__USER_RATE", "LIMITS__IP_RATE", "LIMITS__TENANT_RATE"),
            *("LIMITS__CONNECT_RATE_PER_IP", "ROLLOUT__ACCEPT_RATE"),
        )
        for part, value in _PLENTY.items()
    }
    mine = {
        "PORT": str(port),
        "OPS_PORT": str(ops_port),
        "CONTRACT": str(CONTRACT),
        "AUTH__SECRET": SECRET,
        "API__KEYS": json.dumps([{"name": name, "key": key, "tenant": name} for name, key in API_KEYS.items()]),
        "BROKER__URL": broker,
        "LIMITS__CONNECTIONS_PER_IP": "10000",
        "LIMITS__PENDING": "10000",
        "ROLLOUT__REBALANCE": "false",
        "LOG__LEVEL": "info",
        "LOG__FORMAT": "json",
        **rates,
        **settings,
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHONASYNCIO"))}
    return {**others, **{f"TIDEWIRE_{name}": value for name, value in mine.items()}}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a node's log."""

    at: float
    level: str
    event: str
    fields: Mapping[str, Any]

    def text(self) -> str:
        """To be shown: of a traceback the end, which says what it was."""
        fields = dict(self.fields)
        trace = str(fields.pop("exception", ""))
        return json.dumps(fields)[:WIDE] + ("\n    " + trace[-3 * WIDE :].replace("\n", "\n    ") if trace else "")


@dataclass
class Node:
    """One node. Its ports stay the same over restarts, as a balancer would have it."""

    name: str
    broker: str
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    ops_port: int = field(default_factory=free_port)
    log: deque[Entry] = field(default_factory=lambda: deque(maxlen=5000))
    checkout: Path = CHECKOUT
    """Where the service is that the next start runs."""
    http: aiohttp.ClientSession | None = None
    process: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None
    _listening: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Runs it; returns once it listens. The first time it looks for other ports if somebody else has taken its own."""
        for _ in range(ATTEMPTS):
            fresh = self.process is None
            if await self._start():
                return
            if not fresh or not any("already in use" in str(entry.fields.get("reason")) for entry in self.log):
                break
            self.process, self.port, self.ops_port = None, free_port(), free_port()
        raise AssertionError(f"{self.name} did not listen; its log:\n{self.tail()}")

    async def _start(self) -> bool:
        self._listening.clear()
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve"),
            cwd=self.checkout,
            env=environment(self.broker, self.port, self.ops_port, **self.settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self._reader = asyncio.create_task(self._follow(self.process.stdout))
        await self.forget_us()
        listening = asyncio.create_task(self._listening.wait())
        await asyncio.wait((listening, self._reader), timeout=START, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        return self._listening.is_set()

    async def _follow(self, output: asyncio.StreamReader) -> None:
        async for raw in output:
            try:
                fields = json.loads(raw)
            except ValueError:
                fields = {"level": "raw", "event": raw.decode(errors="replace").rstrip()}
            self.log.append(Entry(monotonic(), str(fields.get("level", "")), str(fields.get("event", "")), fields))
            if fields.get("event") == "serving":
                self._listening.set()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(number)

    async def wait(self, within: float) -> int:
        """Its exit status."""
        assert self.process is not None
        async with asyncio.timeout(within):
            status = await self.process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None
        return status

    async def kill(self) -> None:
        """Ends it as a crash would."""
        self.signal(signal.SIGKILL)
        await self.wait(10)

    async def close(self) -> None:
        """Ends it, however it is, and lets everything go."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            await self.wait(10)
        if self.http is not None:
            await self.http.close()
            self.http = None

    # --- looking at it ------------------------------------------------------------------------------------------------

    def tail(self, lines: int = 25) -> str:
        """The end of its log."""
        return "\n".join(entry.text() for entry in list(self.log)[-lines:])

    async def metrics(self) -> dict[str, float]:
        """What the ops listener exports: name{labels} → value, without the prefix; empty if it does not answer."""
        assert self.http is not None
        try:
            async with self.http.get(f"http://127.0.0.1:{self.ops_port}/metrics") as response:
                lines = (await response.text()).splitlines()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return {}
        samples = (line.rpartition(" ") for line in lines if line.startswith(("tidewire_", "process_")))
        return {name.removeprefix("tidewire_"): float(value) for name, _, value in samples}

    async def ready(self) -> tuple[int, str]:
        """Status and text of readiness; status 0 if there was no answer."""
        return await self._probe("readyz")

    async def alive(self) -> tuple[int, str]:
        """The same of liveness."""
        return await self._probe("healthz")

    async def _probe(self, name: str) -> tuple[int, str]:
        assert self.http is not None
        try:
            async with self.http.get(f"http://127.0.0.1:{self.ops_port}/{name}") as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return 0, type(error).__name__

    async def deaths(self) -> float:
        """Supervised tasks that ended unasked."""
        return total(await self.metrics(), "supervised_task_deaths")

    def fds(self) -> int:
        """Open files, as the kernel counts them."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  # only counted

    def peers(self) -> set[int]:
        """The ports at the other ends of the public listener's connections that it has a descriptor for."""
        peers = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split()[:10]
            if int(local.split(":")[1], 16) == self.port and inode != "0" and state != _LISTENING:
                peers.add(int(remote.split(":")[1], 16))
        return peers

    async def forget_us(self) -> None:
        """Closes the connections that were kept for looking at it."""
        if self.http is not None:
            await self.http.close()
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REPLY))

    def rss(self) -> int:
        """Resident memory in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])

    async def api(self, tenant: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """A call of the backend API."""
        assert self.http is not None
        async with self.http.request(
            method,
            f"http://127.0.0.1:{self.port}/api/v1/{path}",
            json=body,
            headers={"Authorization": f"Bearer {API_KEYS[tenant]}"},
        ) as response:
            return response.status, await response.json(content_type=None)

    async def post(self, path: str, bearer: str, body: object) -> tuple[int, Any]:
        """A request of a client."""
        assert self.http is not None
        async with self.http.post(
            f"http://127.0.0.1:{self.port}/{path}", json=body, headers={"Authorization": f"Bearer {bearer}"}
        ) as response:
            return response.status, await response.json(content_type=None)


def total(metrics: Mapping[str, float], name: str) -> float:
    """The sum of a metric over its labels, `_total` or not."""
    return sum(value for sample, value in metrics.items() if sample.partition("{")[0] in (name, f"{name}_total"))


def lag_p99(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The bound of the bucket that holds the 99th percentile of the loop's lag between two looks."""
    buckets = sorted(
        (float(found[1]), value - before.get(name, 0.0))
        for name, value in after.items()
        if (found := _BUCKET.fullmatch(name))
    )
    count = buckets[-1][1] if buckets else 0.0
    return next((bound for bound, value in buckets if value >= 0.99 * count), 0.0)
