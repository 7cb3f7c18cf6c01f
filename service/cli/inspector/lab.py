"""A cluster for one visitor of the inspector: two nodes, the broker they share, and what is published to them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import structlog
from pydantic import SecretStr
from tidewire import AsyncTidewire, NewEvent, TidewireError, TokenSigner

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.adapters.memory.shared_broker import SharedMemoryBroker
from service.app import Service, running
from service.cli.inspector.network import Network
from service.contract.model import Contract
from service.core.limits import Deadlines, OutboxLimits, Probing, Rollout
from service.errors import ErrorCode, ServiceError
from service.settings import Settings
from service.settings.model import Api, Auth

MAX_LABS = 4
"""Labs at a time. Above that, the one that has been without a page for the longest time ends."""
IDLE_TIMEOUT = 30.0
"""Seconds without a connection after which a lab ends: its page is closed."""
MAX_AGE = 1_800.0
"""Seconds after which a lab ends in any case."""
TOKEN_TTL = 3_600.0

RATE = 20.0
"""Numbers per second."""
BURST_RATE = 120.0
"""Numbers per second while the reader is slow. All of them fit into one recovery (`outbox.recovery_events`)."""
MAX_BATCH = 50
"""Numbers that are published at once, after a pause of the event loop."""
INTERVAL = 0.05
"""Seconds between two publishes."""
CUT_SECONDS = 3.0
SLOW_SECONDS = 5.0
SLOW_RATE = 4_096.0
"""Bytes per second that the slow reader reads."""
BLOCK_TIMEOUT = 30.0
"""Seconds that WebSockets are blocked at most."""
HTTP_SECONDS = 3.0
"""Seconds that WebSockets stay blocked after the client has gone on over HTTP."""

USER = "visitor"
KEPT = "number.kept"
PLAIN = "number.plain"

_log = structlog.get_logger("demo")


class Lab:
    """Two nodes behind a network that breaks, and a backend that publishes the same numbers to two channels.

    `kept:<id>` keeps its events, and `plain:<id>` forgets them, as plain Pub/Sub does. Start it once, and close it.
    """

    def __init__(self, contract: Contract, origin: str) -> None:
        """`origin` is that of the page, which connects to another port."""
        self.id = secrets.token_hex(8)
        self.network = Network(lambda: self._serving[0].port)
        self.port = 0
        """The port of the network."""
        self.published = 0
        """The newest number."""
        self._secret, self._api_key = secrets.token_urlsafe(48), secrets.token_urlsafe(32)
        self._contract = contract
        self._origin = origin
        self._token_id: str | None = None
        self._broker = SharedMemoryBroker(
            MemoryBroker(
                SystemClock(), idempotency_window=300, idempotency_entries=10_000, channels=100, max_bytes=8_000_000
            )
        )
        self._serving: list[_Node] = []
        """The nodes, that for new connections first."""
        self._rate = RATE
        self._playing: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._publishing: asyncio.Task[None] | None = None
        self._began = self._used_at = time.monotonic()
        self._faults: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "cut": self._cut,
            "reset": self._reset,
            "slow": self._slow,
            "block": self._block,
            "revoke": self._revoke,
            "restart": self._restart,
        }

    @property
    def channels(self) -> list[str]:
        """The channel that keeps its events, and the one that does not."""
        return [f"kept:{self.id}", f"plain:{self.id}"]

    @property
    def idle_seconds(self) -> float:
        """Seconds since the page had a connection."""
        return time.monotonic() - self._used_at

    @property
    def is_over(self) -> bool:
        """Whether nobody needs it any more."""
        return self.idle_seconds > IDLE_TIMEOUT or time.monotonic() - self._began > MAX_AGE

    async def start(self) -> None:
        """Starts everything."""
        await self._broker.start()
        for _ in range(2):
            self._serving.append(await self._start_node())
        self.port = await self.network.start()
        self._publishing = asyncio.create_task(self._publish())

    async def close(self) -> None:
        """Ends everything."""
        self._ending.set()
        if self._playing is not None:
            await asyncio.wait([self._playing])
        if self._publishing is not None:
            await asyncio.wait([self._publishing])  # not cancelled: a publish that ends just then swallows that
        await self.network.close()
        await asyncio.gather(*(node.close() for node in self._serving))
        await self._broker.close()

    def token(self) -> str:
        """Signs a token for the page."""
        self._token_id = secrets.token_hex(8)
        return TokenSigner(self._secret).token(USER, grants=self.channels, ttl=TOKEN_TTL, jti=self._token_id)

    async def play(self, fault: str) -> None:
        """Plays a fault, until it is over. One at a time.

        Raises ServiceError (NOT_FOUND, OVERLOADED).
        """
        if fault not in self._faults:
            raise ServiceError(ErrorCode.NOT_FOUND, f"there is no such fault; there are {', '.join(self._faults)}")
        if self._playing is not None and not self._playing.done():
            raise ServiceError(ErrorCode.OVERLOADED, "another fault of this inspector is not over yet")
        self._playing = asyncio.create_task(self._faults[fault]())
        await asyncio.shield(self._playing)  # a page that closes does not leave a node half restarted

    # --- faults -------------------------------------------------------------------------------------------------------

    async def _cut(self) -> None:
        self.network.cut(is_cut=True)
        try:
            await self._wait(CUT_SECONDS)
        finally:
            self.network.cut(is_cut=False)

    async def _reset(self) -> None:
        self.network.reset()

    async def _slow(self) -> None:
        self.network.rate, self._rate = SLOW_RATE, BURST_RATE
        try:
            await self._wait(SLOW_SECONDS)
        finally:
            self.network.rate, self._rate = None, RATE

    async def _block(self) -> None:
        self.network.block_websockets(blocks=True)
        try:
            posts, until = self.network.posts, time.monotonic() + BLOCK_TIMEOUT
            while self.network.posts == posts and not self._ending.is_set() and time.monotonic() < until:
                await self._wait(0.1)
            await self._wait(HTTP_SECONDS)
        finally:
            self.network.block_websockets(blocks=False)

    async def _revoke(self) -> None:
        if self._token_id is not None:
            await self._serving[0].backend.revoke_token(self._token_id, reason="the visitor asked for it")

    async def _restart(self) -> None:
        """Restarts the node that the page is connected to. The other one gets new connections first."""
        node = self._serving.pop(0)
        await node.close()
        self._serving.append(await self._start_node())

    async def _wait(self, seconds: float) -> None:
        """Waits for the length of a fault, or until the lab ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    # --- the backend --------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Publishes the numbers that are due, each to both channels, until the lab ends."""
        due, at = 1.0, time.monotonic()
        while not self._ending.is_set():
            due, at = min(due + (time.monotonic() - at) * self._rate, MAX_BATCH), time.monotonic()
            numbers = range(self.published + 1, self.published + 1 + int(due))
            waiting = [
                NewEvent(channel, kind, {"n": number})
                for number in numbers
                for channel, kind in zip(self.channels, (KEPT, PLAIN), strict=True)
            ]
            while waiting and not self._ending.is_set() and not await self._send(waiting):
                await self._wait(INTERVAL)
            due -= len(numbers)
            self.published += len(numbers)
            if self.network.connections:
                self._used_at = time.monotonic()
            await self._wait(INTERVAL)

    async def _send(self, events: list[NewEvent]) -> bool:
        """Publishes over the API of a node that serves. The same events may go to another node: they have their ids."""
        with suppress(TidewireError):
            return not (await self._serving[0].backend.publish_many(events, deadline=2.0)).refused
        return False

    async def _start_node(self) -> _Node:
        broker = self._broker.node_broker()
        return await _Node.start(Service(self._settings(), self._contract, broker=broker), self._api_key)

    def _settings(self) -> Settings:
        return Settings(
            port=0,
            ops_port=0,
            origins=(self._origin,),
            auth=Auth(secret=SecretStr(self._secret)),
            api=Api(key=SecretStr(self._api_key)),
            outbox=OutboxLimits(messages=128, bytes=32_768, send_buffer=4_096),
            deadlines=Deadlines(heartbeat=5.0, presence_leave=1.0, shutdown=5.0, last_scrape=0.0),
            rollout=Rollout(accept_max_lag=60.0, rebalance=False),  # the event loop is that of the whole demo
            probe=Probing(interval=0.0),
        )


class _Node:
    """A node that listens, and a backend's client of it."""

    def __init__(self, port: int, backend: AsyncTidewire, stack: AsyncExitStack) -> None:
        self.port = port
        self.backend = backend
        self._stack = stack

    @classmethod
    async def start(cls, service: Service, api_key: str) -> _Node:
        async with AsyncExitStack() as stack:
            port, _ = await stack.enter_async_context(running(service))
            backend = AsyncTidewire(f"http://127.0.0.1:{port}", api_key=api_key, retries=0, trust_env=False)
            return cls(port, backend, stack.pop_all())

    async def close(self) -> None:
        """Drains the node: it asks its clients to reconnect. It answers the backend until the end."""
        await self._stack.aclose()
        await self.backend.close()


class Labs:
    """All labs, by id. Those that are over end; `close` ends all."""

    def __init__(self, load_contract: Callable[[], Contract]) -> None:
        self._load_contract = load_contract
        self._contract: Contract | None = None
        self._labs: dict[str, Lab] = {}
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.Task[None] | None = None

    def __contains__(self, lab_id: str) -> bool:
        return lab_id in self._labs

    def find(self, lab_id: str) -> Lab:
        """Raises ServiceError (NOT_FOUND) if it has ended."""
        lab = self._labs.get(lab_id)
        if lab is None:
            raise ServiceError(ErrorCode.NOT_FOUND, "this inspector has ended; reload its page")
        return lab

    async def open(self, origin: str) -> Lab:
        """Starts a lab for a page of this origin. Raises ServiceError (OVERLOADED) if all are in use."""
        async with self._opening:
            if len(self._labs) >= MAX_LABS:
                idlest = max(self._labs.values(), key=lambda lab: lab.idle_seconds)
                if idlest.network.connections:
                    raise ServiceError(ErrorCode.OVERLOADED, f"{MAX_LABS} inspectors are open; close one")
                await self.end(idlest.id)
            if self._contract is None:
                self._contract = self._load_contract()
            lab = Lab(self._contract, origin)
            self._labs[lab.id] = lab
            try:
                await lab.start()
            except BaseException:
                await self.end(lab.id)
                raise
            if self._sweep is None:
                self._sweep = asyncio.create_task(self._end_idle())
            return lab

    async def end(self, lab_id: str) -> None:
        """Ends a lab, if it has not ended yet."""
        if lab := self._labs.pop(lab_id, None):
            closing = asyncio.create_task(lab.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)  # a caller that is cancelled leaves no half closed lab

    async def close(self) -> None:
        """Ends all labs."""
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)
        await asyncio.gather(*map(self.end, tuple(self._labs)))
        await asyncio.gather(*self._closing)

    async def _end_idle(self) -> None:
        """Ends what is over. The task ends with the last lab."""
        while self._labs:
            await asyncio.sleep(1.0)
            for lab in tuple(self._labs.values()):
                if lab.is_over:
                    _log.info("inspector_ended", idle_seconds=round(lab.idle_seconds))
                    await self.end(lab.id)
        self._sweep = None


def describe(lab: Lab) -> dict[str, Any]:
    """Returns what the page needs to connect."""
    kept, plain = lab.channels
    return {"lab": lab.id, "url": f"http://127.0.0.1:{lab.port}/ws", "kept": kept, "plain": plain}
