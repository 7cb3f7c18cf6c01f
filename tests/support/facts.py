"""Nodes whose facts share a store in memory, and the entries that they tell."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from service.adapters.nats.stores.documents import Documents, DocumentUpdate
from service.adapters.nats.stores.presence import NatsPresence
from service.adapters.nats.subjects import Subjects
from service.core.channel import ChannelKey
from service.core.presence import PresenceStore
from service.core.webhooks import ChannelChange, ChannelWebhook, Entry, decode_entry, encode_entry
from service.errors import ErrorCode, ServiceError
from service.realtime.facts.facts import FactConfig, Facts
from service.realtime.facts.sweeper import FactSweeper
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

T = TypeVar("T")
TTL, DEBOUNCE = 30.0, 5.0
TENANT, ENDPOINT = "acme", "archive"
WEBHOOK = ChannelWebhook(ENDPOINT, frozenset(ChannelChange))
ROOM = ChannelKey(TENANT, "room:1")


class _Documents:
    """The documents of a NATS server, in memory: NatsPresence with a clock that tests move."""

    def __init__(self) -> None:
        self.subjects = Subjects("tests")
        self.data: dict[str, bytes] = {}

    async def check(self) -> None: ...

    async def read(self, subject: str) -> bytes | None:
        return self.data.get(subject)

    async def read_all(self, subjects: Sequence[str]) -> Mapping[str, bytes]:
        return {subject: self.data[subject] for subject in subjects if subject in self.data}

    async def change(self, subject: str, update: Callable[[bytes | None], tuple[DocumentUpdate, T]]) -> T:
        found, result = update(self.data.get(subject))
        assert not found.events, "the store of facts publishes nothing"
        if found.data is not None:
            self.data[subject] = found.data
        return result


class Store:
    """The store that all nodes share, and what is in the queues."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.documents = _Documents()
        self.presence = NatsPresence(
            cast(Documents, self.documents), self.clock, ttl=TTL, max_announced_users=-1, keep=86_400
        )
        self.entries: list[Entry] = []
        self._ids: set[str] = set()
        self.dropped = 0
        self.is_full = False

    def lose_everything(self) -> None:
        self.documents.data.clear()

    def append(self, entry: Entry) -> None:
        if self.is_full:
            raise ServiceError(ErrorCode.OVERLOADED, "the queue is full")
        if entry.id not in self._ids:  # as in the broker, within its idempotency window
            self._ids.add(entry.id)
            self.entries.append(decode_entry(encode_entry(entry)))

    def told(self, *kinds: str) -> list[tuple[str, str]]:
        """What was told since the last call: type without its prefix, and connection, user or channel. `kinds`: prefixes."""
        found = [one for one in self.entries if not kinds or one.type.partition(".")[0] in kinds]
        self.entries = [one for one in self.entries if one not in found]
        return [(one.type.partition(".")[2], one.connection or one.user or one.channel or "") for one in found]

    def histories(self) -> Mapping[tuple[str, ...], list[str]]:
        """The types that were told of each fact, in order."""
        found: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for one in self.entries:
            kind, _, what = one.type.partition(".")
            subject = one.connection or one.user or ""
            found[kind, one.channel or "", subject].append(what)
        return found


class Fault:
    """What happens at one call of a node: `fail` raises, `die` never returns and ends the node. `late`: after the call worked."""

    def __init__(self, kind: str, *, late: bool) -> None:
        self.kind = kind
        self.late = late


class _Way:
    """The way of one node to the store."""

    def __init__(self, node: Node, target: Any) -> None:
        self._node = node
        self._target = target

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._node.call(name, lambda: method(*args, **kwargs))

        return call


class _Webhooks:
    """The queues."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def has(self, endpoint: str, tenant: str) -> bool:
        return (endpoint, tenant) == (ENDPOINT, TENANT)

    async def tell(self, endpoint: str, tenant: str, order_key: str, entry: Entry) -> None:
        assert (endpoint, tenant) == (ENDPOINT, TENANT)
        assert order_key == (entry.channel or entry.user or entry.connection)
        self._store.append(entry)

    def dropped(self, endpoint: str, count: int = 1) -> None:
        self._store.dropped += count


class Node:
    """One node."""

    def __init__(self, name: str, store: Store, nodes: Callable[[], Sequence[str]] = list, **config: Any) -> None:
        self.name = name
        self.store = store
        self.is_away = False
        self.is_dead = False
        self.calls = 0
        self.faults: dict[int, Fault] = {}
        """By the number of the call, from 0."""
        self.gate = asyncio.Event()
        self.gate.set()
        self._stops: dict[str, asyncio.Event] = {}
        self._next_faults: dict[str, Fault] = {}
        self.metrics = Metrics()
        self.runtime = Runtime.create(store.clock, self.metrics)
        settings = {
            "ttl": TTL,
            "debounce": DEBOUNCE,
            "is_shared": True,
            "max_waiting": 100,
            "client_endpoint": ENDPOINT,
            "client_tenant": None,
            **config,
        }
        self.facts = Facts(
            name,
            cast(PresenceStore, _Way(self, store.presence)),
            cast(Any, _Way(self, _Webhooks(store))),
            self.runtime,
            FactConfig(**settings),
        )
        self.sweeper = FactSweeper(
            name,
            cast(PresenceStore, _Way(self, store.presence)),
            self.facts.teller,
            self.facts.lease,
            lambda: [one for one in nodes() if one != name],
            self.runtime,
        )
        self.facts.start()
        if settings["is_shared"]:
            self.sweeper.start()

    async def call(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        number, self.calls = self.calls, self.calls + 1
        fault = self.faults.get(number) or self._next_faults.pop(name, None)
        await self.gate.wait()
        if name in self._stops:
            await self._stops[name].wait()
        await asyncio.sleep(0)  # other nodes go on meanwhile
        if self.is_dead:
            await asyncio.Event().wait()
        if self.is_away:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")
        if fault is not None and not fault.late:
            await self._suffer(fault)
        result = await work()
        await asyncio.sleep(0)
        if fault is not None:
            await self._suffer(fault)
        return result

    async def _suffer(self, fault: Fault) -> None:
        if fault.kind == "die":
            self.is_dead = True
            await asyncio.Event().wait()
        raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "failed")

    def stop(self, method: str) -> asyncio.Event:
        """Makes calls of a method of the store wait until the event is set."""
        return self._stops.setdefault(method, asyncio.Event())

    def fail_next(self, method: str, *, late: bool) -> None:
        """Makes the next call of a method of the store fail."""
        self._next_faults[method] = Fault("fail", late=late)

    async def kill(self) -> None:
        """Ends everything at this node, and tells nobody."""
        self.is_dead = True
        self.sweeper.close()
        await self.runtime.tasks.close()
        await self.facts.close()

    def connect(self, connection: str, user: str = "ann") -> None:
        self.facts.client_connected(connection, TENANT, user, "tidewire-js/1.2.0")

    def disconnect(self, connection: str, code: int = 1000) -> None:
        self.facts.client_disconnected(connection, TENANT, code)

    def occupy(self, channel: ChannelKey = ROOM) -> None:
        self.facts.channel_occupied(channel, WEBHOOK)

    def vacate(self, channel: ChannelKey = ROOM) -> None:
        self.facts.channel_vacated(channel, WEBHOOK)

    def join(self, user: str, connection: str, info: bytes | None = None) -> None:
        self.facts.user_joined(ROOM, WEBHOOK, user, connection, info)

    def leave(self, user: str, connection: str) -> None:
        self.facts.user_left(ROOM, WEBHOOK, user, connection)


class Stage:
    """Nodes of one store."""

    def __init__(self, *names: str, **config: Any) -> None:
        self.store = Store()
        self.nodes = [Node(name, self.store, self.names, **config) for name in names]

    def names(self) -> list[str]:
        return [node.name for node in self.nodes if not node.is_dead]

    async def rest(self) -> None:
        """Lets all tasks go on until none can."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def wait(self, seconds: float) -> None:
        """Moves time in steps of half a second."""
        await self.rest()
        for _ in range(round(seconds * 2)):
            self.store.clock.advance(0.5)
            await self.rest()

    async def close(self) -> None:
        for node in self.nodes:
            await node.kill()
