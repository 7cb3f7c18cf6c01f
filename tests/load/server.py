"""The service as its own process, as an operator runs it, looked at from outside."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.harness import API_KEY, SECRET

CONTRACT = Path(__file__).parent / "contract.yaml"
CHECKOUT = Path(__file__).parents[2]
START = 60.0
"""Seconds from the start of the process to its listening."""
POLL = 0.05
"""Seconds between two looks at another process, which has no event to wait for."""
GAUGES = ("connections", "pending_connections", "subscriptions", "channels", "outbox_messages", "outbox_bytes")
"""What must be 0 when nobody is there."""

PLENTY = {"per_second": 100_000, "burst": 100_000}
CONFIG: dict[str, Any] = {
    "port": 0,
    "ops_port": 0,
    "contract": str(CONTRACT),
    "auth": {"secret": SECRET},
    "api": {"key": API_KEY},
    # Everyone comes from one machine and at once; the caps are another test's business.
    "limits": {"connect_rate_per_ip": PLENTY, "ip_rate": PLENTY, "connections_per_ip": 10_000, "pending": 10_000},
    "rollout": {"accept_rate": PLENTY},
    "deadlines": {"presence_leave": 0.2},
    "log": {"level": "info", "format": "json"},
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process takes."""

    rss: int
    """KiB"""
    fds: int


@dataclass(frozen=True, slots=True)
class Server:
    """A running `tidewire serve`."""

    process: asyncio.subprocess.Process
    port: int
    ops_port: int
    log: deque[str]
    """Its last lines, to show when a test fails."""

    def usage(self) -> Usage:
        """As the kernel counts it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return Usage(int(rss.split()[1]), len(os.listdir(f"/proc/{self.process.pid}/fd")))  # noqa: PTH208  # only counted

    async def metrics(self) -> dict[str, float]:
        """What the ops listener exports: name{labels} → value."""
        url = f"http://127.0.0.1:{self.ops_port}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            lines = (await response.text()).splitlines()
        samples = (line.rpartition(" ") for line in lines if line.startswith("tidewire_"))
        return {name.removeprefix("tidewire_"): float(value) for name, _, value in samples}

    async def is_empty(self) -> dict[str, float]:
        """Waits until every gauge of GAUGES is 0; returns those that are not in time."""
        left: dict[str, float] = {}
        for _ in range(round(10 / POLL)):
            metrics = await self.metrics()
            left = {name: metrics[name] for name in GAUGES if metrics[name]}
            if not left:
                break
            await asyncio.sleep(POLL)
        return left

    async def at_rest(self, fds: int) -> Usage:
        """What the process takes once it has closed what its clients closed, down to `fds`; or after the deadline."""
        for _ in range(round(10 / POLL)):
            if self.usage().fds <= fds:
                break
            await asyncio.sleep(POLL)
        return self.usage()

    async def deaths(self) -> float:
        """Supervised tasks of the service that ended unasked."""
        metrics = await self.metrics()
        return sum(value for name, value in metrics.items() if name.startswith("supervised_task_deaths"))


@asynccontextmanager
async def serving(directory: Path, settings: dict[str, Any] = CONFIG) -> AsyncIterator[Server]:
    """Runs the service until the block ends; it may have ended by itself by then."""
    config = directory / "tidewire.yaml"
    config.write_text(yaml.safe_dump(settings))
    os.sched_setaffinity(
        0, range(os.cpu_count() or 1)
    )  # a process gets its parent's, which another node's start has changed
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "serve", "--config", str(config)),
        cwd=CHECKOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHONASYNCIO"))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    log: deque[str] = deque(maxlen=50)
    assert process.stdout is not None
    reader: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(START):
            port, ops_port = await _ports(process.stdout, log)
        reader = asyncio.create_task(_follow(process.stdout, log))
        _share_cores(process.pid)
        yield Server(process, port, ops_port, log)
    except BaseException:
        print("\n".join(log))
        raise
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        if process.returncode is None:
            process.kill()
        await process.wait()
        if reader is not None:
            await reader


async def _ports(output: asyncio.StreamReader, log: deque[str]) -> tuple[int, int]:
    async for line in output:
        log.append(line.decode().rstrip())
        entry = json.loads(line) if line.startswith(b"{") else {}
        if entry.get("event") == "serving":
            return entry["port"], entry["ops_port"]
    raise AssertionError("the service ended before it listened")


async def _follow(output: asyncio.StreamReader, log: deque[str]) -> None:
    async for line in output:
        log.append(line.decode().rstrip())


def _share_cores(pid: int) -> None:
    """One core for the service, the others for its clients: neither then measures the other's waiting."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, cores[:1])
        os.sched_setaffinity(0, cores[1:])
