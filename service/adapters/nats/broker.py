"""The Broker over NATS: one JetStream stream keeps everything, and passes it on as soon as it is kept.

A publish is one batch that NATS keeps as a whole or not at all: the event, its id, and the channel's head (how far it has
come), the last two on condition that nobody else has written them meanwhile. So offsets are dense and ids unique whatever the
nodes do at the same time. docs/adr/0013-nats.md has the reasons, and what is promised less than with Redis.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

from service.adapters.nats.channel_reader import Reader
from service.adapters.nats.config import NatsConfig, Subjects, text
from service.adapters.nats.connection.jetstream import Kept, Stream
from service.adapters.nats.connection.link import Link, Unfit, unavailable
from service.adapters.nats.connection.protocol import Message, publish
from service.adapters.nats.head_tracker import Heads
from service.adapters.nats.publish_queue import Writer
from service.adapters.nats.records import Entry, Head, Heard, decode, encode, entry
from service.adapters.store.config import ServerTime
from service.aio.eager_start import ensure_task
from service.core import epoch as epochs
from service.core.backoff import Backoff
from service.core.broker import ChannelInfo, DeliveredHead, EventSink, HistoryPage, PublishResult, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Publication
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

T = TypeVar("T")

HEADS_AT_ONCE = 200
"""Read together to list channels."""
ENVELOPE = 1_024
"""Bytes that a message may take beside its data."""
WAITS = (0.05, 1.0)
"""Between two tries to start, see `Backoff`."""


class NatsBroker:
    """Keeps the port's guarantee as docs/guarantees.md says for NATS. Nothing here outlives `broker.timeout`; when more than
    `broker.queue` calls wait, or while there is no connection, calls fail at once."""

    delivers_synchronously = False

    def __init__(self, config: NatsConfig, clock: Clock, metrics: Metrics, on_time: ServerTime | None = None) -> None:
        """`clock`: by which what is kept expires; all nodes should agree on it. `on_time` gets what the server's clock shows."""
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self.subjects = Subjects(config.prefix)
        self._link = Link(config, self._restored, metrics.broker.broker_lag_seconds.observe)
        prefix = config.prefix
        self.stream = Stream(self._link, prefix, self.subjects.kept, (f"{prefix}.e.>", f"{prefix}.live.>"), on_time)
        self._sink: EventSink | None = None
        self._state = "not started yet"
        self._calls = 0
        self._subscriptions: dict[ChannelKey, int] = {}
        self._empty: dict[ChannelKey, int] = {}
        """Subscribed channels in which nothing had been published when they were read, with their head's sequence."""
        self._keeping: asyncio.Task[None] | None = None
        self._heads = Heads(config, self.subjects, self.stream, clock)
        self._writer = Writer(config, self.subjects, self.stream, self._heads, clock)
        self._reader = Reader(self.subjects, self.stream, self._heads, clock)

    @property
    def most_bytes(self) -> int:
        """Of one message's data."""
        return int(self._link.info.get("max_payload", 1_048_576)) - ENVELOPE

    # --- life -----------------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """As the port says; waits `config.start` seconds for servers that cannot be reached."""
        if self._state != "not started yet":
            raise unavailable("the broker has been started before")
        self._state = "starting"
        deadline = asyncio.get_running_loop().time() + self._config.start
        try:
            await self._until(deadline, self._link.start)
            await self._until(deadline, self.stream.ensure)
        except BaseException:
            await self._link.close()
            raise
        self._sink = sink
        self._state = "started"
        self._keeping = asyncio.create_task(self._go_on_keeping(), name="nats empty channels")
        self._metrics.broker.broker_queue.set_function(lambda: self._calls)
        self._metrics.broker.broker_subscriptions.set_function(lambda: len(self._subscriptions))
        self._metrics.broker.broker_empty_channels.set_function(lambda: len(self._empty))

    async def _until(self, deadline: float, step: Callable[[], Awaitable[None]]) -> None:
        """Repeats a step that fails, unless waiting does not help or the deadline has passed."""
        backoff = Backoff(*WAITS)
        while True:
            try:
                async with asyncio.timeout(self._config.timeout):
                    return await step()
            except Unfit:
                raise
            except (ServiceError, TimeoutError) as error:
                if asyncio.get_running_loop().time() > deadline:
                    if isinstance(error, ServiceError):
                        raise
                    raise unavailable(f"NATS has not answered within {self._config.timeout:g} s") from None
            await asyncio.sleep(backoff.next())

    async def close(self) -> None:
        """As the port says."""
        self._state = "closed"
        self._sink = None
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._link.close()
        await self._writer.close()
        self._subscriptions.clear()
        self._empty.clear()
        self._heads.clear()

    async def check(self) -> None:
        """As the port says. Makes the stream anew if somebody has deleted it."""
        async with self.call():
            await self.stream.ensure()

    async def _restored(self) -> None:
        """After each reconnect: what was heard and known before may be outdated, and some may have been missed."""
        self._metrics.broker.broker_reconnects.labels(line="messages").inc()
        await self.stream.ensure()
        self._heads.reconnected()
        if self._sink is not None:
            self._sink.interrupted(None)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[EventSink]:
        """Bounds one call, in time and in number.

        Raises ServiceError, also in place of TimeoutError.
        """
        await ensure_task()
        with self._counted() as sink, self._bounded():
            async with asyncio.timeout(self._config.timeout):
                yield sink

    @contextmanager
    def _counted(self) -> Iterator[EventSink]:
        """Bounds calls in number, and measures them."""
        if self._sink is None:
            raise unavailable(f"the broker is {self._state}")
        if not self._link.usable:
            raise unavailable("there is no connection to NATS")
        if self._calls >= self._config.queue:
            self._metrics.limits.limit_hits.labels(limit="broker_queue").inc()
            raise unavailable(f"{self._config.queue} calls wait for NATS already")
        self._calls += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield self._sink
        finally:
            self._calls -= 1
            self._metrics.broker.broker_seconds.observe(loop.time() - began)

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise unavailable(f"NATS has not answered within {self._config.timeout:g} s") from None

    async def _in_time(self, future: asyncio.Future[T]) -> T:
        """Bounds a wait in time where there may be no task, which asyncio.timeout needs."""
        timer = asyncio.get_running_loop().call_later(self._config.timeout, _expire, future)
        try:
            with self._bounded():
                return await future
        finally:
            timer.cancel()
            future.cancel()  # without effect on one that is done; else nobody will look at it any more

    # --- publishing -----------------------------------------------------------------------------------------------------

    async def publish(self, publication: Publication) -> PublishResult:
        """As the port says. Raises ValueError for a durable or latest event without retention: a fault in the caller."""
        with self._counted():
            if len(publication.data) > self.most_bytes:
                raise ServiceError(ErrorCode.TOO_BIG, "NATS takes no event of this size; see its max_payload")
            if publication.delivery is Delivery.EPHEMERAL:
                data = encode(entry(publication, milliseconds(self._clock)))
                self._link.send(publish(self.subjects.ephemeral(publication.channel), data))
                await self._in_time(self._link.settle())
                return PublishResult(publication.id, epoch="")
            if publication.retention is None:
                raise ValueError(f"a {publication.delivery.value} publication needs a retention")
            return await self._in_time(self._writer.keep(publication, publication.retention))

    # --- hearing --------------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        async with self.call():
            if channel in self._subscriptions:
                await self._link.settle()
                return
            subject = self.subjects.live(channel)
            self._subscriptions[channel] = self._link.subscribe(subject, partial(self._hear, channel))
            self._heads.follow(channel)
            try:
                await self._link.settle()
                self._link.check_permitted(subject)
                # In a cluster our server may know of the subscription before the stream's does. It tells it on the way that
                # this question takes too, so when the answer is here the stream's server knows.
                known = await self._heads.open(channel, anew=True)
                self._heads.note(channel, known.head)
                if known.head.is_empty and channel in self._subscriptions:
                    self._empty[channel] = known.sequence
            except BaseException:
                self._forget(channel)
                raise

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        if self._sink is None:
            raise unavailable(f"the broker is {self._state}")
        self._forget(channel)

    def _forget(self, channel: ChannelKey) -> None:
        sid = self._subscriptions.pop(channel, None)
        self._empty.pop(channel, None)
        self._heads.unfollow(channel)
        if sid is not None:
            self._link.unsubscribe(sid)

    async def _go_on_keeping(self) -> None:
        while True:
            # Nodes that started together do not go on writing at the same moment.
            await asyncio.sleep(self._config.empty_ttl / 3 * random.uniform(0.7, 1.0))  # noqa: S311  # guards nothing
            with suppress(ServiceError):  # the next round comes in time
                await self.keep_empty()

    async def keep_empty(self) -> None:
        """Keeps the positions of empty channels that this node is subscribed to; called again within `config.empty_ttl`."""
        waiting = list(self._empty)
        for start in range(0, len(waiting), HEADS_AT_ONCE):
            some = {one: self._empty[one] for one in waiting[start : start + HEADS_AT_ONCE] if one in self._empty}
            async with self.call():
                kept = await self._heads.keep(some)
            for channel in some.keys() & self._empty.keys():
                if channel in kept:
                    self._empty[channel] = kept[channel]
                else:
                    del self._empty[channel]

    def _hear(self, channel: ChannelKey, message: Message) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            heard = decode(message.payload, Entry)
        except ServiceError:
            self._metrics.broker.broker_errors.labels(reply="message").inc()
            sink.interrupted([channel])  # whatever it was, the stream knows what should have come
            return
        if heard.delivery is not Delivery.EPHEMERAL and not self._heads.fits(channel, heard):
            self._heads.doubt(channel)
            sink.interrupted([channel])
            return
        sink.deliver(heard.event(channel))

    # --- reading --------------------------------------------------------------------------------------------------------

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """Reads until head and state agree; while a channel keeps changing, `state` may hold values above `state_version`."""
        async with self.call():
            head, state = await self._reader.read(channel)
            if since is not None and self._contradicts(head, since):
                await self._heads.end_epoch(channel, head.epoch)
                head, state = await self._reader.read(channel)
            found = () if since is None else await self._reader.missed(channel, head, since, max_events, max_bytes)
        return Snapshot(
            position=head.top,
            state=[one.event(channel) for one in state],
            missed=[] if found is None else found,
            recovered=None if since is None else found is not None,
            state_version=head.state_version,
            epoch_start=head.base,
        )

    def _contradicts(self, head: Head, since: Position) -> bool:
        """Whether a position shows that the stream was set back. As anyone can say so, a young epoch is left alone."""
        is_further = since.epoch == head.epoch and since.offset > head.offset
        if not is_further and not epochs.is_later(since.epoch, than=head.epoch):
            return False
        age = milliseconds(self._clock) / 1_000 - epochs.start_of(head.epoch) / 1_000_000
        return age >= epochs.MIN_EPOCH_AGE

    async def stream_heads(
        self, channels: Sequence[ChannelKey], known: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead]:
        """As the port says. A channel of which NATS has lost something begins its new epoch here."""
        gate = asyncio.Semaphore(HEADS_AT_ONCE)

        async def mark(
            channel: ChannelKey, heard: Heard | None, kept: Kept | None, told: DeliveredHead | None
        ) -> StreamHead:
            if kept is None:
                return StreamHead("", 0, 0)
            head = decode(kept.data, Head)
            taken = (
                None
                if told is None
                else Heard(told.position.epoch, told.position.offset, told.position.id, told.state_version)
            )
            if self._heads.is_over(channel, head, heard) or (taken is not None and head.lacks(taken)):
                async with gate:  # a replica that is behind may have answered: the leader decides
                    head = (await self._heads.known(channel, taken)).head
            return StreamHead(head.epoch, head.offset, head.state_version)

        async with self.call():
            heard = [self._heads.heard(channel) for channel in channels]  # before asking, see `Heads.known`
            subjects = list(map(self.subjects.head, channels))
            found = await self.stream.several(subjects)
            return await asyncio.gather(
                *(mark(*one) for one in zip_longest(channels, heard, map(found.get, subjects), known))
            )

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """As the port says."""
        async with self.call():
            head = (await self._heads.open(channel)).head
            low = head.first if after is None else max(head.first, after + 1)
            high = head.offset if before is None else min(head.offset, before - 1)
            if not head.has_history(milliseconds(self._clock)):
                high = 0
            find = self._reader.last if after is None else self._reader.earliest
            found = await find(channel, head, low, high, limit + 1) if low <= high else ()
        kept = found[-limit:] if after is None else found[:limit]
        return HistoryPage(head.top, [one.event(channel) for one in kept], has_more=len(found) > limit)

    async def list_channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
        """As the port says, but of channels without history and state only those that have subscribers on this node."""
        async with self.call():
            subjects = await self.stream.names(self.subjects.heads(tenant))
            names = {text(subject.rpartition(".")[2]): subject for subject in subjects}
            wanted = sorted(name for name in names if name.startswith(prefix))
            found: list[ChannelInfo] = []
            while wanted and len(found) < limit:
                part, wanted = wanted[:HEADS_AT_ONCE], wanted[HEADS_AT_ONCE:]
                kept = await self.stream.several([names[name] for name in part])
                heads = {name: decode(kept[names[name]].data, Head) for name in part if names[name] in kept}
                found.extend(
                    ChannelInfo(name, head.top) for name, head in heads.items() if self._in_use(tenant, name, head)
                )
        return found[:limit]

    def _in_use(self, tenant: str, name: str, head: Head) -> bool:
        now = milliseconds(self._clock)
        return ChannelKey(tenant, name) in self._subscriptions or head.has_history(now) or head.has_state(now)


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
