"""The stage of one scenario: nodes, publishers and clients around a store; and at the end the standing figures."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Self

import aiohttp

from tests.faults.books import Ack, Key, Top, line
from tests.faults.clients.apart import CrowdApart
from tests.faults.clients.crowd import Cast, Crowd
from tests.faults.node import GAUGES, LOOK, Node, total
from tests.faults.oracle import judge
from tests.faults.publishers import Desk
from tests.faults.report import Report
from tests.faults.tokens import TENANTS
from tests.support.proxy import Proxy

COME = 240.0
"""Seconds that all clients together may take to join, 6 250 of them on a busy machine too: no scenario measures this."""
SETTLE = 40.0
"""Seconds after the last publish in which every client must come to the top of its channels."""
REST = 45.0
"""Seconds in which a node must have forgotten its clients: those with polls are held for presence.ttl."""
BATCH, FLOOD = 400, 9_000
"""Events of a flood that are published in one request, and the number of its publisher."""
SPARE_FDS = 40
"""Open files more than before that mean nothing: the pool of links to the store grows with use. Connections of clients, of which
there must be none, are counted apart."""


class Stage:
    """See the module. As an async context it runs the scenario between a quiet beginning and the judgement."""

    def __init__(
        self,
        report: Report,
        brokers: Sequence[str],
        *,
        clients: int,
        rate: float,
        channels: int,
        each: int = 1,
        room: bool = False,
        fronts: bool = False,
        apart: bool = False,
        homes: Sequence[int] = (),
        backends: Sequence[int] = (),
        traffic: bool = True,
        throttled: bool = False,
        settings: dict[str, str] | None = None,
        transports: Sequence[str] = ("websocket",),
        publishers: Sequence[str] = ("api", "api", "api", "api", "websocket"),
    ) -> None:
        """`brokers`: one address a node. `room`: channels with presence. `fronts`: a proxy before each node.
        `apart`: the clients in a process of their own. `homes`: the nodes that clients begin at, in turn; all evenly if
        empty. `backends`: the nodes that publishers publish at; all if empty. `traffic`: publishers begin by themselves.
        `throttled`: they publish less on a busy machine. `transports`, `publishers`: what clients and publishers use, each as
        often as it is named."""
        self.report = report
        self.seed = report.seed
        self.channels = [f"{'room' if room else 'hall'}:{number}" for number in range(channels)]
        self.nodes = [Node(f"node-{number}", broker, dict(settings or {})) for number, broker in enumerate(brokers)]
        self.fronts: list[Proxy] = []
        self.ports: list[int] = []
        """Where clients connect; shared with them."""
        self.backends: list[int] = self.ports
        """Where publishers connect; shared with them."""
        self._use_fronts, self._apart, self._traffic = fronts, apart, traffic
        self._throttled = throttled
        self._clients, self._rate, self._each, self._homes = clients, rate, each, homes
        self._transports, self._publishers = tuple(transports), tuple(publishers)
        self._backends = backends
        self._fds: dict[str, int] = {}
        self._flooded = count()
        self._stack = AsyncExitStack()

    crowd: Crowd | CrowdApart

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                self._stack.push_async_callback(node.close)
            await self._start()
            await self._open_fronts()
            self._fds = {node.name: node.fds() for node in self.nodes if node.is_running}
            cast = Cast(
                *(self.seed, self._clients, list(TENANTS), self.channels, self.ports, self._each, list(self._homes)),
                transports=self._transports,
            )
            self.crowd = CrowdApart(cast) if self._apart else Crowd(cast)
            self._stack.push_async_callback(self.crowd.leave)
            self.desk = Desk(
                *(self.seed, TENANTS, self.channels, self.backends, self._rate),
                kinds=self._publishers,
                slowdown=(lambda: self.report.slowdown) if self._throttled else (lambda: 1.0),
            )
            self._stack.push_async_callback(self.desk.stop, 0.0)
            self.log = self.desk.log
            await self.crowd.come(COME)
            if self._traffic:
                self.desk.start()
                await self.publishing(0.0, within=10)
        except BaseException:
            self._tails()
            await self._stack.aclose()
            raise
        return self

    async def _start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes))

    async def _open_fronts(self) -> None:
        self.ports[:] = [node.port for node in self.nodes]
        if self._use_fronts:
            for index, node in enumerate(self.nodes):
                front = Proxy(node.port)
                self._stack.push_async_callback(front.close)
                self.fronts.append(front)
                self.ports[index] = await front.start()
        if self._backends:
            self.backends = [self.ports[index] for index in self._backends]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, AssertionError | TimeoutError | aiohttp.ClientError | OSError):
                await self._judge()
        finally:
            if error is not None or self.report.failures:
                self._tails()
            await self._stack.aclose()

    @property
    def near(self) -> Crowd:
        """The crowd, where it is in this process."""
        assert isinstance(self.crowd, Crowd)
        return self.crowd

    # --- what scenarios do --------------------------------------------------------------------------------------------

    async def calm(self, seconds: float) -> None:
        """Lets everything run for a while."""
        await asyncio.sleep(seconds)  # the time itself is what is wanted: so much undisturbed traffic

    async def publishing(self, since: float, within: float) -> float | None:
        """Waits until every publisher was acknowledged after the moment; the seconds from it, None if that did not come."""
        everyone = {publisher.number for publisher in self.desk.publishers}
        start = since or monotonic()

        async def all_acked() -> bool:
            return everyone <= {ack.line // 1_000_000 for ack in self.log.acks if ack.at > start}

        return await seconds_until(all_acked, start, within * self.report.patience)

    async def caught_up(self, since: float, within: float) -> float | None:
        """Waits until all clients have all that is acknowledged by now; the seconds since the moment, None if they don't."""
        newest = dict(self.log.newest)

        async def nobody_lacks() -> bool:
            return await self.crowd.below(newest) == 0

        return await seconds_until(nobody_lacks, since, within * self.report.patience)

    async def healed(self, since: float, within: float) -> float | None:
        """Waits for `publishing`, then for `caught_up`."""
        if await self.publishing(since, within) is None:
            return None
        return await self.caught_up(since, within)

    async def flood(self, node: Node, tenant: str, channel: str, *, events: int, size: int) -> None:
        """Publishes many large events at once, as a publisher of its own; the oracle judges them too."""
        for start in range(0, events, BATCH):
            moment = monotonic()
            numbers = [line(FLOOD, next(self._flooded)) for _ in range(min(BATCH, events - start))]
            batch = [
                {
                    "type": "talk.line",
                    "id": f"flood-{number}",
                    "data": {"t": tenant, "c": channel, "line": number, "at": moment, "pad": "x" * size},
                }
                for number in numbers
            ]
            status, body = await node.api(tenant, "POST", f"channels/{channel}/events", batch)
            assert status == 200, body
            for number, result in zip(numbers, body["results"], strict=True):
                key = Key(tenant, channel)
                self.log.accepted(Ack(key, number, result["epoch"], result["offset"], moment, monotonic()))

    async def repaired(self) -> float:
        """Events that the nodes have read from streams to close gaps. A scenario that makes gaps wants some, or it tests
        nothing."""
        return sum([total(await node.metrics(), "repaired_events") for node in self.nodes])

    async def noticed(self, node: Node, since: float, within: float) -> float | None:
        """Waits until the node shows, in its log, metrics or readiness, that the store is not there."""

        async def known() -> bool:
            metrics = await node.metrics()
            told = any(entry.at >= since and entry.level in ("warning", "error") for entry in node.log)
            return told or metrics.get("broker_up", 1.0) == 0.0

        return await seconds_until(known, since, within * self.report.patience)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _judge(self) -> None:
        report = self.report
        await self.desk.stop(SETTLE * report.patience)
        tops = await self._tops()
        late = await seconds_until(lambda: self._arrived(tops), monotonic(), SETTLE * report.patience)
        report.expect(late is not None, f"not everyone came to the top of their channels within {SETTLE:g} s")
        report.judged(judge(self.log.acks, await self.crowd.diaries(), tops))
        report.expect(not self.log.refused, f"publishes refused for good: {self.log.refused[:3]}")
        report.expect(len(self.log.acks) > 0, "nothing was published at all")
        books = await self.crowd.seen()
        report.figures |= {
            "acknowledged": len(self.log.acks),
            "deliveries": books.deliveries,
            "slowest": {name: round(seconds, 3) for name, seconds in books.slowest_by.items()},
            "repeats": books.repeats,
            "gaps": books.gaps,
            "resumed": books.resumed_by,
            "pushed": books.pushed,
            "client_troubles": dict(Counter(f"{one.transport}: {one.what}" for one in books.troubles)),
            "publisher_troubles": len(self.log.troubles),
        }
        polling = await self.crowd.polling()
        await self.crowd.leave()
        running = [node for node in self.nodes if node.is_running]
        for tenant, user in polling:  # else the nodes hold their sessions for presence.ttl
            await running[0].api(tenant, "POST", f"users/{user}/disconnect")
        for node in running:
            await self._at_rest(node)

    async def _arrived(self, tops: dict[Key, Top]) -> bool:
        return await self.crowd.behind(tops) == 0

    async def _tops(self) -> dict[Key, Top]:
        """Where every channel ends, as a node that is there tells it."""
        tops: dict[Key, Top] = {}

        async def read() -> bool:
            node = next(node for node in self.nodes if node.is_running)
            try:
                for key in {Key(tenant, channel) for tenant in TENANTS for channel in self.channels}:
                    status, body = await node.api(key.tenant, "GET", f"channels/{key.channel}/history?limit=1")
                    if status != 200:
                        return False
                    tops[key] = Top(body["epoch"], body["offset"])
            except (aiohttp.ClientError, OSError, TimeoutError):
                return False
            return True

        if await seconds_until(read, monotonic(), SETTLE) is None:
            self.report.expect(False, "no node could tell where the channels end")
        return tops

    async def _at_rest(self, node: Node) -> None:
        left: dict[str, float] = {}
        await node.forget_us()

        async def forgotten() -> bool:
            nonlocal left
            metrics = await node.metrics()
            left = {name: metrics.get(name, -1.0) for name in GAUGES if metrics.get(name) != 0.0}
            return not left and not node.peers() and node.fds() <= self._fds[node.name] + SPARE_FDS

        if await seconds_until(forgotten, monotonic(), REST * self.report.patience) is None:
            fds = f"{node.fds()} open files, {self._fds[node.name]} before, {len(node.peers())} of them connections"
            self.report.expect(False, f"{node.name} did not come back to rest: {left}, {fds}")
        deaths = await node.deaths()
        self.report.expect(deaths == 0, f"{node.name}: {deaths:g} supervised tasks died")

    def _tails(self) -> None:
        for node in self.nodes:
            print(f"--- {node.name}, the end of its log ---\n{node.tail()}")


async def seconds_until(holds: Callable[[], Awaitable[bool]], since: float, within: float) -> float | None:
    """Looks at other processes until it holds; the seconds since a moment, None if it does not hold in time."""
    end = since + within
    while True:
        if await holds():
            return monotonic() - since
        if monotonic() > end:
            return None
        await asyncio.sleep(LOOK / 2)
