"""Scenarios: one fault each, with what must hold. `@scenario` registers them; `run` runs one and never raises."""

from __future__ import annotations

import asyncio
import traceback
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Literal, TypeAlias

from tests.faults.report import Report
from tests.faults.stage import Stage
from tests.stores.nats_server import NatsServer
from tests.stores.process import MissingProgramError
from tests.stores.redis_server import Flavour, RedisServer

Store: TypeAlias = Flavour | Literal["memory", "nats"]
REDIS: tuple[Store, ...] = ("redis", "valkey")
ANY: tuple[Store, ...] = (*REDIS, "nats", "memory")
STORES = ANY
"""Every store, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much traffic there is around a fault."""

    clients: int
    rate: float
    channels: int
    calm: float
    """Seconds before and after."""


PATIENCE = 3.0
"""By what the quick form multiplies the bounds on seconds: it is played beside whatever else a machine does."""

QUICK = Size(clients=32, rate=30, channels=4, calm=1.0)
FULL = Size(clients=400, rate=120, channels=12, calm=4.0)


@dataclass(frozen=True, slots=True)
class Mix:
    """What clients and publishers use, each as often as it is named."""

    transports: tuple[str, ...] = (*("websocket",) * 4, *("stream",) * 2, "sse", "poll")
    publishers: tuple[str, ...] = ("api", "api", "emit", "emit", "websocket")

    @property
    def each(self) -> tuple[str, ...]:
        """Every transport once."""
        return tuple(dict.fromkeys(self.transports))


@dataclass
class Arena:
    """What a scenario is given."""

    report: Report
    random: Random
    store: Store
    quick: bool
    mix: Mix = Mix()

    @property
    def size(self) -> Size:
        """The usual traffic."""
        return QUICK if self.quick else FULL

    @property
    def flavour(self) -> Flavour:
        """The program that Redis stores are made of."""
        assert self.store == "redis" or self.store == "valkey", f"a scenario for Redis was played on {self.store}"
        return self.store

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[str]:
        """The address of any broker."""
        if self.store == "memory":
            yield "memory://"
        elif self.store == "nats":
            async with NatsServer() as nats:
                yield nats.url
        else:
            async with RedisServer(self.store) as server:
                yield server.url

    def stage(self, *brokers: str, **options: Any) -> Stage:
        """A stage with a node for each broker address, and the usual traffic unless told otherwise."""
        if self.store == "memory":
            brokers = brokers[:1]  # two nodes would be two worlds
        size = self.size
        usual = {
            "clients": size.clients,
            "rate": size.rate,
            "channels": size.channels,
            "transports": self.mix.transports,
            "publishers": self.mix.publishers,
            "throttled": not self.quick,  # the little traffic of the quick form would become too little to test anything
        }
        return Stage(self.report, brokers, **{**usual, **options})


Play = Callable[[Arena], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault and what must hold."""

    name: str
    play: Play
    quick: bool
    """Whether the quick form has it."""
    stores: tuple[Store, ...]
    """What it can be played on."""
    topology: str
    """How the store is built, for the table; empty: one server."""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, *, quick: bool = False, on: tuple[Store, ...] = REDIS, topology: str = ""
) -> Callable[[Play], Play]:
    """Registers a scenario. Its docstring says what must hold."""

    def register(play: Play) -> Play:
        assert name not in SCENARIOS, name
        SCENARIOS[name] = Scenario(name, play, quick, on, topology)
        return play

    return register


def _place(error: Exception) -> str:
    """The line of the suite that the error has come through: a TimeoutError says nothing else."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" in frame.filename]
    return f"{Path(lines[-1].filename).name}:{lines[-1].lineno}" if lines else "outside the suite"


async def run(
    scenario_: Scenario, seed: int, store: Store, *, quick: bool, mix: Mix | None = None, patience: float = 1.0
) -> Report:
    """Plays it; whatever goes wrong stands in the report. `patience`: what the bounds on seconds are multiplied by."""
    asyncio.get_running_loop().set_debug(False)  # it would spend the clients' core on tracebacks
    report = Report(scenario_.name, " ".join(filter(None, (store, scenario_.topology))), seed)
    report.least_patience = max(patience, PATIENCE if quick else 1.0)
    # Every scenario has a schedule of its own, whichever others run beside it.
    random = Random(seed ^ zlib.crc32(scenario_.name.encode()))
    started = monotonic()
    try:
        await scenario_.play(Arena(report, random, store, quick, mix or Mix()))
    except MissingProgramError as reason:
        report.skipped = str(reason)
    except Exception as error:
        report.failures.append(f"{type(error).__name__}: {error} ({_place(error)})")
    report.seconds = round(monotonic() - started, 1)
    report.figures["slowdown"] = round(report.slowdown, 1)
    return report
