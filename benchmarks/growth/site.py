"""Nodes of the service on one Redis, each in its own process, with the CPU time and the memory of each."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import yaml

from benchmarks.cases import Case
from benchmarks.growth.clients import token
from benchmarks.peers.peer import CHECKOUT
from benchmarks.peers.tidewire import SECRET, Tidewire, redis_line
from benchmarks.processes import HOST, Cores, Program, free_port

CONTRACT = Path(__file__).parent / "contract.yaml"
QUIET = 0.02
"""CPU seconds a second of a node at rest, at most."""
_LOOK = 0.25
_LOOKS = 40


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds so far."""

    nodes: float
    redis: float

    def since(self, before: Cpu) -> Cpu:
        """Returns the CPU seconds after an earlier moment."""
        return Cpu(self.nodes - before.nodes, self.redis - before.redis)

    def microseconds(self, units: float) -> Cpu:
        """Returns the CPU microseconds of one unit."""
        return Cpu(self.nodes / units * 1e6, self.redis / units * 1e6)


class Site:
    """The nodes on the server's core; Redis, and the clients, on the other one."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self._folder = folder
        self._cores = cores
        self._redis_port = free_port()
        self._redis: Program | None = None
        self._nodes: list[Program] = []
        self.ports: list[int] = []
        """The public TCP port of each node."""

    @staticmethod
    def token(user: str, tenant: str = "default") -> str:
        """Returns a token that its nodes accept."""
        return token(SECRET, user, tenant)

    async def start(self, nodes: int, settings: Mapping[str, Any]) -> None:
        """Starts Redis, then the nodes, and waits until they are at rest. Raises FailedError."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        await self.start_redis()
        self.ports = [free_port() for _ in range(nodes)]
        for number, port in enumerate(self.ports):
            self._nodes.append(await self._start_node(number, port, settings))
        for node, port in zip(self._nodes, self.ports, strict=True):
            await node.listening(port)
        await self.at_rest()

    async def start_redis(self) -> None:
        """Starts an empty Redis, and waits until it accepts connections."""
        folder = self._folder / "redis"
        folder.mkdir(exist_ok=True)
        line = redis_line(self._redis_port, folder)
        self._redis = await Program.start("Redis", line, core=self._cores.client, log=folder / "log")
        await self._redis.listening(self._redis_port)

    async def end_redis(self) -> None:
        """Ends Redis. It keeps nothing."""
        if self._redis is not None:
            await self._redis.end()

    async def _start_node(self, number: int, port: int, settings: Mapping[str, Any]) -> Program:
        usual = Tidewire().settings(Case("growth", "idle", 0), port)
        file = self._folder / f"node-{number}.yaml"
        # Each client is on the same machine. Nothing else differs from the defaults.
        limits = usual["limits"] | {"connections_per_user": 1_000_000} | settings.get("limits", {})
        written: dict[str, Any] = {
            **usual,
            **settings,
            "contract": str(CONTRACT),
            "limits": limits,
            "broker": {"url": f"redis://{HOST}:{self._redis_port}"},
            "rollout": {**usual["rollout"], "rebalance": False},
        }
        file.write_text(yaml.safe_dump(written))
        command = (sys.executable, "-m", "service", "serve", "--config", file)
        log = self._folder / f"node-{number}.log"
        return await Program.start(f"node {number}", command, core=self._cores.server, log=log, cwd=CHECKOUT)

    async def at_rest(self) -> None:
        """Waits until the nodes use at most QUIET of a core each, for at most ten seconds."""
        before = self.cpu().nodes
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK)
            now = self.cpu().nodes
            if now - before <= _LOOK * QUIET * len(self._nodes):
                return
            before = now

    def cpu(self) -> Cpu:
        """Returns the CPU time of all nodes, and of Redis. Raises FailedError if one has ended."""
        assert self._redis is not None
        return Cpu(sum(node.usage().cpu for node in self._nodes), self._redis.usage().cpu)

    def memory(self) -> int:
        """Returns the resident bytes of all nodes."""
        return sum(node.usage().rss for node in self._nodes)

    def redis_memory(self) -> int:
        """Returns the bytes that Redis has allocated for keys, connections and subscriptions."""
        with redis.Redis(HOST, self._redis_port) as client:
            return int(client.info("memory")["used_memory"])

    async def end(self) -> None:
        """Ends all programs."""
        for program in (*self._nodes, *([] if self._redis is None else [self._redis])):
            await program.end()


@asynccontextmanager
async def site(folder: Path, cores: Cores, nodes: int = 1, **settings: Any) -> AsyncIterator[Site]:
    """Runs nodes on one Redis, with these settings in addition to the benchmark's."""
    running = Site(folder, cores)
    try:
        await running.start(nodes, settings)
        yield running
    finally:
        await running.end()
