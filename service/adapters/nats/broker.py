"""The Broker on NATS: one JetStream stream stores everything, and NATS delivers each message once it is stored.

docs/adr/0013-nats.md has the reasons, and says where the guarantee is weaker than with Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

from service.adapters.nats.channel_reader import ChannelReader
from service.adapters.nats.config import NatsConfig
from service.adapters.nats.connection.jetstream import StoredMessage, Stream
from service.adapters.nats.connection.link import Link
from service.adapters.nats.connection.protocol import Message, encode_publish
from service.adapters.nats.head_store import HeadStore
from service.adapters.nats.publish_queue import PublishQueue
from service.adapters.nats.records import (
    ChannelHead,
    EventRecord,
    SeenHead,
    decode,
    encode,
    epoch_record,
    event_record,
)
from service.adapters.nats.removal import EventRemover
from service.adapters.nats.seen_heads import SeenHeads, must_end_epoch
from service.adapters.nats.subjects import Subjects, from_token
from service.adapters.store.calls import CallLimit, call_timeout, late
from service.adapters.store.config import ServerTimeObserver
from service.adapters.store.empty_channels import EmptyChannels
from service.adapters.store.errors import MisconfiguredError, unavailable
from service.adapters.store.retry import retry
from service.aio.tasks import TaskSupervisor
from service.core import epoch as epochs
from service.core.backoff import Backoff
from service.core.broker import (
    ChannelInfo,
    DeliveredHead,
    EventSink,
    HistoryPage,
    PublishResult,
    Snapshot,
    StreamHead,
)
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Event, Publication, last_within
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

T = TypeVar("T")

MAX_HEADS = 200
"""Heads that are read together."""
ENVELOPE_BYTES = 1_024
"""Bytes of a message without its data, at most."""
START_BACKOFF = (0.05, 1.0)
"""Seconds before a retry of the start: first, longest."""


class NatsBroker:
    """Keeps the guarantee of the port as docs/guarantees.md says for NATS.

    No call takes longer than `config.call_timeout`. A call fails at once if `config.max_calls` wait or there is no
    connection.
    """

    delivers_synchronously = False

    def __init__(
        self,
        config: NatsConfig,
        clock: Clock,
        metrics: Metrics,
        on_server_time: ServerTimeObserver | None = None,
    ) -> None:
        """`clock` decides when records expire, so the clocks of all nodes should agree. `on_server_time` gets the
        server's time."""
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._tasks = TaskSupervisor(metrics.process.count_task_death)
        self._limit = CallLimit("NATS", config.max_calls, metrics)
        self.subjects = Subjects(config.prefix)
        self._link = Link(
            config,
            TaskSupervisor(metrics.process.count_task_death),
            on_reconnected=self._on_reconnected,
            on_pong=metrics.broker.broker_lag_seconds.observe,
        )
        prefix = config.prefix
        republish = (f"{prefix}.e.>", f"{prefix}.live.>")
        self.stream = Stream(self._link, prefix, self.subjects.stored, republish, on_server_time)
        self._seen = SeenHeads()
        self._heads = HeadStore(config, self.subjects, self.stream, self._seen, clock)
        self._queue = PublishQueue(config, self.subjects, self.stream, self._heads, clock)
        self._reader = ChannelReader(self.subjects, self.stream, self._heads, clock)
        self._remover = EventRemover(self.subjects, self.stream, self._heads, clock)
        self._empty = EmptyChannels[int](config.empty_ttl, self._renew_empty)
        self._sink: EventSink | None = None
        self._state = "not started yet"
        self._subscriptions: dict[ChannelKey, int] = {}

    @property
    def max_bytes(self) -> int:
        """Bytes of data that a message may have."""
        return int(self._link.info.get("max_payload", 1_048_576)) - ENVELOPE_BYTES

    # --- start and end --------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """Connects; waits `config.start_timeout` seconds for servers that cannot be reached."""
        if self._state != "not started yet":
            raise unavailable("the broker has been started before")
        self._state = "starting"
        deadline = asyncio.get_running_loop().time() + self._config.start_timeout
        try:
            await self._retry_until(deadline, self._link.start)
            await self._retry_until(deadline, self.stream.ensure_created)
        except BaseException:
            await self._link.close()
            raise
        self._sink = sink
        self._state = "started"
        self._tasks.spawn("empty channel renewal", self._empty.run())
        self._metrics.broker.broker_queue.set_function(lambda: self._limit.pending)
        self._metrics.broker.broker_subscriptions.set_function(lambda: len(self._subscriptions))
        self._metrics.broker.broker_empty_channels.set_function(lambda: len(self._empty))

    async def _retry_until(self, deadline: float, step: Callable[[], Awaitable[None]]) -> None:
        """Repeats a failing step until the deadline. Gives up at once on a wrong configuration."""

        async def bounded() -> None:
            async with call_timeout("NATS", self._config.call_timeout):
                await step()

        def give_up(error: ServiceError) -> None:
            if isinstance(error, MisconfiguredError) or asyncio.get_running_loop().time() > deadline:
                raise error

        await retry(bounded, Backoff(*START_BACKOFF), ServiceError, give_up)

    async def close(self) -> None:
        """Ends the connection. Calls that run fail."""
        self._state = "closed"
        self._sink = None
        await self._tasks.close()
        await self._link.close()
        await self._queue.close()
        self._subscriptions.clear()
        self._empty.clear()
        self._seen.clear()
        self._heads.clear()

    async def check(self) -> None:
        """Reads the stream's information. Creates the stream again if somebody has deleted it."""
        async with self.call():
            await self.stream.ensure_created()

    async def _on_reconnected(self) -> None:
        """Reports an interruption: messages may have been missed, and cached heads may be outdated."""
        self._metrics.broker.broker_reconnects.labels(line="messages").inc()
        await self.stream.ensure_created()
        self._heads.evict_all()
        if self._sink is not None:
            self._sink.interrupted(None)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[EventSink]:
        """Bounds a call in time and in number. Raises ServiceError, also in place of TimeoutError."""
        with self._counted() as sink:
            async with call_timeout("NATS", self._config.call_timeout):
                yield sink

    @contextmanager
    def _counted(self) -> Iterator[EventSink]:
        """Bounds calls in number, and measures them."""
        if self._sink is None:
            raise unavailable(f"the broker is {self._state}")
        if not self._link.is_ready:
            raise unavailable("there is no connection to NATS")
        self._limit.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield self._sink
        finally:
            self._limit.release()
            self._metrics.broker.broker_seconds.observe(loop.time() - began)

    async def _wait(self, future: asyncio.Future[T]) -> T:
        """Bounds a wait in time outside of a task, where asyncio.timeout does not work."""
        timer = asyncio.get_running_loop().call_later(self._config.call_timeout, _expire, future)
        try:
            return await future
        except TimeoutError:
            raise late("NATS", self._config.call_timeout) from None
        finally:
            timer.cancel()
            future.cancel()  # nobody else retrieves its result

    # --- publishing -----------------------------------------------------------------------------------------------------

    def start_publish(self, publication: Publication) -> None:
        """Does nothing: a publish here is a coroutine."""

    async def publish(self, publication: Publication) -> PublishResult:
        """Stores the event with its result and the channel's head. An ephemeral event is only delivered.

        Raises ValueError for a durable or latest event without retention: a fault in the caller.
        """
        with self._counted():
            if len(publication.data) > self.max_bytes:
                raise ServiceError(ErrorCode.TOO_BIG, "NATS takes no event of this size; see its max_payload")
            if publication.delivery is Delivery.EPHEMERAL:
                data = encode(event_record(publication, milliseconds(self._clock)))
                self._link.send(encode_publish(self.subjects.live_ephemeral(publication.channel), data))
                await self._wait(self._link.flush())
                return PublishResult(publication.id, epoch="")
            if publication.retention is None:
                raise ValueError(f"a {publication.delivery.value} publication needs a retention")
            return await self._wait(self._queue.publish(publication, publication.retention))

    # --- subscriptions --------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: ChannelKey) -> None:
        """Returns when the server of the stream knows the subscription."""
        async with self.call():
            if channel in self._subscriptions:
                await self._link.flush()
                return
            subject = self.subjects.live(channel)
            self._subscriptions[channel] = self._link.subscribe(subject, partial(self._on_message, channel))
            self._seen.track(channel)
            try:
                await self._link.flush()
                self._link.check_permitted(subject)
                # In a cluster, our server may know the subscription before the stream's server does. The subscription
                # takes the same way as this request, so the stream's server knows it when it answers.
                stored = await self._heads.load_or_create(channel, renew_empty=True)
                self._seen.record_head(channel, stored.head)
                if stored.head.is_empty and channel in self._subscriptions:
                    self._empty.add(channel, stored.sequence)
            except BaseException:
                self._drop(channel)
                raise

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """Drops messages of the channel from now on, and unsubscribes at the server."""
        if self._sink is None:
            raise unavailable(f"the broker is {self._state}")
        self._drop(channel)

    def _drop(self, channel: ChannelKey) -> None:
        sid = self._subscriptions.pop(channel, None)
        self._empty.discard(channel)
        self._seen.untrack(channel)
        if sid is not None:
            self._link.unsubscribe(sid)

    async def renew_empty_channels(self) -> None:
        """Renews the positions of this node's empty channels once. A task does the same periodically."""
        await self._empty.renew()

    async def _renew_empty(self, sequences: Mapping[ChannelKey, int]) -> Mapping[ChannelKey, int]:
        async with self.call():
            return await self._heads.renew_empty(sequences)

    def _on_message(self, channel: ChannelKey, message: Message) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            record = decode(message.payload, EventRecord)
        except ServiceError:
            self._metrics.broker.broker_errors.labels(reply="message").inc()
            sink.interrupted([channel])  # it may stand in for an event, which the stream has
            return
        if record.is_tombstone:  # an `event.removed` of its own tells of it
            return
        if record.delivery is not Delivery.EPHEMERAL and not self._seen.record_event(channel, record):
            self._seen.suspect(channel)
            sink.interrupted([channel])
            return
        sink.deliver(record.event(channel))

    # --- reading --------------------------------------------------------------------------------------------------------

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        """Reads until head and state agree. While a channel keeps changing, `state` may contain values above
        `state_version`."""
        async with self.call():
            head, state, now = await self._reader.read_state(channel)
            if since is not None and self._shows_loss(head, since):
                await self._heads.end_epoch(channel, head.epoch)
                head, state, now = await self._reader.read_state(channel)
            missed = None
            if since is not None:
                missed = await self._reader.read_missed(channel, head, since, max_events, max_bytes)
            last: Sequence[EventRecord] = ()
            if tail and head.has_history(milliseconds(self._clock)):
                last = await self._reader.read_last(channel, head, max(1, head.first), head.offset, tail)
        return Snapshot(
            position=head.position,
            state=[record.event(channel, now) for record in state],
            missed=() if missed is None else missed,
            recovered=None if since is None else missed is not None,
            state_version=head.state_version,
            epoch_start=head.epoch_start,
            tail=last_within([record.event(channel) for record in last], max_bytes),
        )

    def _shows_loss(self, head: ChannelHead, since: Position) -> bool:
        """Whether a position shows that the stream was set back. A client can invent a position, so a young epoch is
        kept."""
        is_ahead = since.epoch == head.epoch and since.offset > head.offset
        if not is_ahead and not epochs.is_later(since.epoch, than=head.epoch):
            return False
        age = milliseconds(self._clock) / 1_000 - epochs.start_of(head.epoch) / 1_000_000
        return age >= epochs.MIN_EPOCH_AGE

    async def stream_heads(
        self, channels: Sequence[ChannelKey], delivered: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead]:
        """Reads the heads together. Where NATS has lost something, the stream's leader is asked, and a new epoch begins."""
        gate = asyncio.Semaphore(MAX_HEADS)

        async def check(
            channel: ChannelKey,
            seen: SeenHead | None,
            message: StoredMessage | None,
            known: DeliveredHead | None,
        ) -> StreamHead:
            if message is None:
                return StreamHead("", 0, 0)
            head = decode(message.data, ChannelHead)
            told = None if known is None else _as_seen(known)
            is_lost = must_end_epoch(head, seen, is_suspected=self._seen.is_suspected(channel))
            if is_lost or (told is not None and head.lacks(told)):
                async with gate:  # the first answer may be from a replica that is behind
                    head = (await self._heads.load(channel, told)).head
            return StreamHead(head.epoch, head.offset, head.state_version)

        async with self.call():
            seen = [self._seen.get(channel) for channel in channels]  # before the read, as in HeadStore.load
            subjects = list(map(self.subjects.head, channels))
            messages = await self.stream.get_last_of(subjects)
            return await asyncio.gather(
                *(check(*each) for each in zip_longest(channels, seen, map(messages.get, subjects), delivered))
            )

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """Reads the segments of the page, and those that follow while they have expired."""
        async with self.call():
            head = (await self._heads.load_or_create(channel)).head
            low = head.first if after is None else max(head.first, after + 1)
            high = head.offset if before is None else min(head.offset, before - 1)
            if not head.has_history(milliseconds(self._clock)):
                high = 0
            read = self._reader.read_last if after is None else self._reader.read_first
            found = await read(channel, head, low, high, limit + 1) if low <= high else ()
        page = found[-limit:] if after is None else found[:limit]
        return HistoryPage(head.position, [record.event(channel) for record in page], has_more=len(found) > limit)

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        """Reads the records that have taken the place of removed values."""
        async with self.call():
            return [record.event(channel) for record in await self._reader.read_removals(channel, after)]

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        """Lists the tenant's heads. Of channels without history and state, only those with subscribers on this node."""
        async with self.call():
            subjects = await self.stream.list_subjects(self.subjects.heads(tenant))
            names = {from_token(subject.rpartition(".")[2]): subject for subject in subjects}
            wanted = sorted(name for name in names if name.startswith(prefix) and name > after)
            found: list[ChannelInfo] = []
            while wanted and len(found) < limit:
                part, wanted = wanted[:MAX_HEADS], wanted[MAX_HEADS:]
                messages = await self.stream.get_last_of([names[name] for name in part])
                heads = {
                    name: decode(messages[names[name]].data, ChannelHead) for name in part if names[name] in messages
                }
                found.extend(
                    ChannelInfo(name, head.position)
                    for name, head in heads.items()
                    if self._is_listed(ChannelKey(tenant, name), head)
                )
        return found[:limit]

    # --- taking back ----------------------------------------------------------------------------------------------------

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """Writes the tombstones, then deletes the events and overwrites their bytes."""
        async with self.call():
            return await self._remover.remove(channel, events)

    async def purge(self, channel: ChannelKey) -> Position | None:
        """Writes the head of the new epoch, then deletes all messages before it."""
        async with self.call():
            head = await self._remover.purge(channel)
            if head is None:
                return None
            self._seen.record_head(channel, head)
            notice = encode(epoch_record(channel, head))
            self._link.send(encode_publish(self.subjects.live_ephemeral(channel), notice))
            await self._link.flush()
            return head.position

    def _is_listed(self, channel: ChannelKey, head: ChannelHead) -> bool:
        now = milliseconds(self._clock)
        return channel in self._subscriptions or head.has_history(now) or head.has_state(now)


def _as_seen(delivered: DeliveredHead) -> SeenHead:
    position = delivered.position
    return SeenHead(position.epoch, position.offset, position.id, delivered.state_version)


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
