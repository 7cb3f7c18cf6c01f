"""The Broker over NATS: one JetStream stream keeps everything, and passes it on as soon as it is kept.

A publish is one batch that NATS keeps as a whole or not at all: the event, its id, and the channel's head (how far it has
come), the last two on condition that nobody else has written them meanwhile. So offsets are dense and ids unique whatever the
nodes do at the same time. docs/adr/0013-nats.md has the reasons, and what is promised less than with Redis.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from service.adapters.nats.config import NatsConfig, Subjects, text
from service.adapters.nats.link import Link, Unfit, unavailable
from service.adapters.nats.records import (
    SEGMENT,
    Entry,
    Head,
    Heard,
    Outcome,
    advance,
    decode,
    encode,
    entry,
    new_head,
    segments,
    unbroken,
    values,
)
from service.adapters.nats.stream import Conflict, Kept, Stream, Write
from service.adapters.nats.wire import Message, publish
from service.adapters.tasks import need_task
from service.core.backoff import Backoff
from service.core.broker import ChannelInfo, EventSink, Mark, Page, Receipt, Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position, missed
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

T = TypeVar("T")

MOST_IN_BATCH = 300
"""Publications kept together; NATS takes at most 1 000 messages in a batch, and each of these is two, or three with a head."""
BYTES_IN_BATCH = 4_194_304
BATCHES_AT_ONCE = 8
"""Of one node; NATS takes at most 50 of one stream at a time."""
HEADS_AT_ONCE = 200
"""Read together to list channels."""
HEADS_REMEMBERED = 10_000
"""Channels whose head this node remembers after publishing; for others a publish reads it first."""
TRIES = 5
"""Readings of a channel that changes under them, or by a replica that is behind, before what was read has to do."""
ENVELOPE = 1_024
"""Bytes that a message may take beside its data."""
WAITS = (0.05, 1.0)
"""Between two tries to start, see `Backoff`."""
PAUSES = (0.005, 0.1)
"""Between two readings, and between two tries to publish against other nodes."""


class Known(NamedTuple):
    """A head, and the sequence of its message; 0 if there is none yet."""

    sequence: int
    head: Head


class Read(NamedTuple):
    """What was read of a channel."""

    head: Head
    state: Sequence[Entry]


@dataclass(slots=True, eq=False)
class Waiting:
    """A publication that waits to be kept."""

    publication: Publication
    retention: Retention
    done: asyncio.Future[Receipt]

    def succeed(self, receipt: Receipt) -> None:
        """Nobody may be waiting any more."""
        if not self.done.done():
            self.done.set_result(receipt)

    def fail(self, error: Exception) -> None:
        """The same."""
        if not self.done.done():
            self.done.set_exception(error)


class NatsBroker:
    """Keeps the port's guarantee as docs/guarantees.md says for NATS. Nothing here outlives `broker.timeout`; when more than
    `broker.queue` calls wait, or while there is no connection, calls fail at once."""

    is_prompt = False

    def __init__(self, config: NatsConfig, clock: Clock, metrics: Metrics) -> None:
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self.subjects = Subjects(config.prefix)
        self._link = Link(config, self._restored)
        prefix = config.prefix
        self.stream = Stream(self._link, prefix, self.subjects.kept, (f"{prefix}.e.>", f"{prefix}.live.>"))
        self._sink: EventSink | None = None
        self._state = "not started yet"
        self._calls = 0
        self._subscriptions: dict[ChannelKey, int] = {}
        self._queue: deque[Waiting] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._heads: OrderedDict[ChannelKey, Known] = OrderedDict()
        self._heard: dict[ChannelKey, Heard] = {}
        """How far each subscribed channel has come, as far as this node knows."""
        self._doubted: set[ChannelKey] = set()
        """Subscribed channels of which NATS has lost something. Nothing is delivered of them until they have a new epoch."""

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
        self._metrics.broker_queue.set_function(lambda: self._calls)
        self._metrics.broker_subscriptions.set_function(lambda: len(self._subscriptions))

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
        await self._link.close()
        if self._writer is not None:
            await self._writer  # which fails all that wait, as there is no connection
        self._subscriptions.clear()
        self._heard.clear()
        self._doubted.clear()

    async def check(self) -> None:
        """As the port says. Makes the stream anew if somebody has deleted it."""
        async with self.call():
            await self.stream.ensure()

    async def _restored(self) -> None:
        """After each reconnect: what was heard and known before may be outdated, and some may have been missed."""
        self._metrics.broker_reconnects.labels(line="messages").inc()
        await self.stream.ensure()
        for channel, known in self._heads.items():
            if self._heard.get(channel, known.head).epoch == known.head.epoch:
                self._note(channel, known.head)
        self._heads.clear()
        if self._sink is not None:
            self._sink.interrupted(None)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[EventSink]:
        """Bounds one call, in time and in number.

        Raises ServiceError, also in place of TimeoutError.
        """
        await need_task()
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
            self._metrics.limit_hits.labels(limit="broker_queue").inc()
            raise unavailable(f"{self._config.queue} calls wait for NATS already")
        self._calls += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield self._sink
        finally:
            self._calls -= 1
            self._metrics.broker_seconds.observe(loop.time() - began)

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

    async def publish(self, publication: Publication) -> Receipt:
        """As the port says. Raises ValueError for a durable or latest event without retention: a fault in the caller."""
        with self._counted():
            if len(publication.data) > self.most_bytes:
                raise ServiceError(ErrorCode.TOO_BIG, "NATS takes no event of this size; see its max_payload")
            if publication.delivery is Delivery.EPHEMERAL:
                data = encode(entry(publication, milliseconds(self._clock)))
                self._link.send(publish(self.subjects.ephemeral(publication.channel), data))
                await self._in_time(self._link.settle())
                return Receipt(publication.id, epoch="")
            if publication.retention is None:
                raise ValueError(f"a {publication.delivery.value} publication needs a retention")
            waiting = Waiting(publication, publication.retention, asyncio.get_running_loop().create_future())
            self._queue.append(waiting)
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write(), name="nats publish")
            return await self._in_time(waiting.done)

    async def _write(self) -> None:
        """Keeps what waits, as much of it together as goes into a batch: to NATS a batch costs much more than a message."""
        while self._queue:
            batch = self._next_batch()
            try:
                async with asyncio.timeout(self._config.timeout):
                    await self._keep(batch)
            except Exception as error:  # whoever waits for it gets it
                for one in batch:
                    one.fail(error)

    def _next_batch(self) -> Sequence[Waiting]:
        """The first of the queue, in order within each channel. What NATS does not take twice in a batch, or whose second
        depends on what becomes of the first, waits for the next one, and what follows in its channel with it."""
        batch: list[Waiting] = []
        left: list[Waiting] = []
        claimed: set[str] = set()
        behind: set[ChannelKey] = set()
        size = 0
        while self._queue and len(batch) < MOST_IN_BATCH and len(left) < MOST_IN_BATCH and size < BYTES_IN_BATCH:
            one = self._queue.popleft()
            channel = one.publication.channel
            claims = self._claims(one.publication)
            if one.done.done():  # its publisher does not wait any more
                continue
            if channel in behind or not claimed.isdisjoint(claims):
                behind.add(channel)
                left.append(one)
                continue
            claimed.update(claims)
            batch.append(one)
            size += len(one.publication.data)
        self._queue.extendleft(reversed(left))
        return batch

    def _claims(self, publication: Publication) -> Sequence[str]:
        """The subjects that a batch may hold once."""
        if publication.delivery is Delivery.DURABLE:
            return (self._id_of(publication),)
        value = self.subjects.value(publication.channel, publication.type, publication.key)
        return self._id_of(publication), value

    async def _keep(self, batch: Sequence[Waiting]) -> None:
        """All at once, if no other node publishes into one of the channels meanwhile; else each channel by itself."""
        channels: dict[ChannelKey, list[Waiting]] = {}
        for one in batch:
            channels.setdefault(one.publication.channel, []).append(one)
        if len(channels) > 1:
            # What NATS refuses for one channel's sake is no reason to refuse the others'.
            with suppress(Conflict, ServiceError):
                await self._commit(channels, {})
                return
        gate = asyncio.Semaphore(BATCHES_AT_ONCE)

        async def one_channel(channel: ChannelKey, waiting: Sequence[Waiting]) -> None:
            async with gate:
                try:
                    await self._insist(channel, waiting)
                except ServiceError as error:
                    for one in waiting:
                        one.fail(error)

        await asyncio.gather(*(one_channel(*item) for item in channels.items()))

    async def _insist(self, channel: ChannelKey, batch: Sequence[Waiting]) -> None:
        """Tries until nobody else has come in between, and finds out which of the batch have been published before."""
        expired: dict[str, int] = {}
        backoff = Backoff(*PAUSES)
        while todo := [one for one in batch if not one.done.done()]:
            try:
                await self._commit({channel: todo}, expired)
            except Conflict:
                for one, receipt in zip(todo, await self._outcomes(todo, expired), strict=True):
                    if receipt is not None:
                        one.succeed(receipt)
                await asyncio.sleep(backoff.next())

    async def _commit(self, channels: Mapping[ChannelKey, Sequence[Waiting]], expired: dict[str, int]) -> None:
        """Keeps all or nothing.

        Raises Conflict.
        """
        now = milliseconds(self._clock)
        remembered = {channel: self._heads[channel] for channel in channels if channel in self._heads}
        unknown = [channel for channel in channels if channel not in remembered]
        read = zip(unknown, await asyncio.gather(*map(self._known, unknown)), strict=True)
        heads_before = remembered | dict(read)
        writes: list[Write] = []
        receipts: list[Receipt] = []
        heads: list[tuple[ChannelKey, Head, Head, int]] = []
        for channel, batch in channels.items():
            known = heads_before[channel]
            head, given, made = self._writes(known.head, batch, expired, now)
            receipts += given
            writes += [*made, self._head(channel, head, after=known.sequence)]
            heads.append((channel, known.head, head, len(writes)))
        try:
            last = await self.stream.write(writes)
        except Conflict:
            for channel in channels:
                self._heads.pop(channel, None)
            raise
        for channel, before, head, place in heads:
            self._remember(channel, Known(last - len(writes) + place, head))
            self._trim(channel, before, head)
        for one, receipt in zip(chain.from_iterable(channels.values()), receipts, strict=True):
            one.succeed(receipt)

    def _writes(
        self, head: Head, batch: Sequence[Waiting], expired: dict[str, int], now: int
    ) -> tuple[Head, list[Receipt], list[Write]]:
        """The head after the batch, what becomes of each publication, and what is to be written beside the head."""
        receipts, writes = [], []
        for publication, retention in ((one.publication, one.retention) for one in batch):
            head, next_entry = advance(head, publication, retention, now)
            receipts.append(Receipt(publication.id, head.epoch, next_entry.offset, next_entry.rev))
            subject = self._id_of(publication)
            outcome = encode(Outcome(head.epoch, next_entry.offset, next_entry.rev, now))
            window = self._config.idempotency_window
            writes.append(Write(subject, outcome, window, only=True, after=expired.get(subject, 0)))
            writes.append(self._event(next_entry, publication, retention))
        return head, receipts, writes

    def _event(self, what: Entry, publication: Publication, retention: Retention) -> Write:
        channel = publication.channel
        if what.offset is not None:
            return Write(self.subjects.durable(channel, what.offset // SEGMENT), encode(what), retention.ttl)
        subject = self.subjects.value(channel, publication.type, publication.key)
        return Write(subject, encode(what), retention.ttl, only=True)

    def _head(self, channel: ChannelKey, head: Head, after: int) -> Write:
        ttl = max(self._config.position_ttl, head.ttl, head.state_ttl)
        return Write(self.subjects.head(channel), encode(head), ttl, only=True, after=after)

    def _id_of(self, publication: Publication) -> str:
        return self.subjects.id(publication.channel, publication.sender, publication.id)

    async def _outcomes(self, batch: Sequence[Waiting], expired: dict[str, int]) -> Sequence[Receipt | None]:
        """What became of each publication earlier; notes the ids that are there although their window is over."""

        async def one(publication: Publication) -> Receipt | None:
            subject = self._id_of(publication)
            kept = await self.stream.last(subject)
            if kept is None:
                expired.pop(subject, None)
                return None
            outcome = decode(kept.data, Outcome)
            if milliseconds(self._clock) < outcome.accepted + self._config.idempotency_window * 1000:
                return outcome.receipt(publication.id)
            expired[subject] = kept.sequence
            return None

        return await asyncio.gather(*(one(waiting.publication) for waiting in batch))

    def _trim(self, channel: ChannelKey, before: Head, after: Head) -> None:
        """Now and then lets go of what the retention no longer covers; what is left until then does not count."""
        if _passes(before.offset, after.offset, after.entries):
            self.stream.trim(self.subjects.durable(channel), after.entries)
        if _passes(before.rev, after.rev, after.state_entries):
            self.stream.trim(self.subjects.state(channel), after.state_entries)

    # --- heads ----------------------------------------------------------------------------------------------------------

    async def _known(self, channel: ChannelKey) -> Known:
        """The channel's head, from the stream; a new one if there is none, or NATS has lost something it had accepted."""
        # Before asking: what is heard while the answer is on its way may be newer than it.
        heard, doubted = self._heard.get(channel), channel in self._doubted
        kept = await self.stream.last(self.subjects.head(channel))
        if kept is None:
            return Known(0, new_head())
        known = Known(kept.sequence, decode(kept.data, Head))
        if heard is not None and _is_over(known.head, heard, doubted):
            known = await self._write_head(channel, known.head.in_new_epoch(), after=kept.sequence)
        if heard is not None and known.head.epoch != heard.epoch:
            self._note(channel, known.head)
        return known

    async def _open(self, channel: ChannelKey) -> Head:
        """The same, and from now on it is there."""
        known = await self._known(channel)
        if not known.sequence:
            known = await self._write_head(channel, known.head, after=0)
        return known.head

    async def _write_head(self, channel: ChannelKey, head: Head, after: int) -> Known:
        try:
            return Known(await self.stream.write([self._head(channel, head, after)]), head)
        except Conflict:  # somebody else was first
            return await self._known(channel)

    def _remember(self, channel: ChannelKey, known: Known) -> None:
        self._heads[channel] = known
        self._heads.move_to_end(channel)
        if len(self._heads) > HEADS_REMEMBERED:
            self._heads.popitem(last=False)

    def _note(self, channel: ChannelKey, head: Head) -> None:
        """Notes how far a subscribed channel has come: if its head is found before that, NATS has lost something."""
        if channel not in self._subscriptions:
            return
        heard, read = self._heard.get(channel), head.heard
        if heard is None or heard.epoch != read.epoch:
            self._doubted.discard(channel)
        else:
            if heard.offset > read.offset:
                read = read._replace(offset=heard.offset, id=heard.id)
            if heard.rev > read.rev:
                read = read._replace(rev=heard.rev, state_id=heard.state_id)
        self._heard[channel] = read

    # --- hearing --------------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        async with self.call():
            if channel in self._subscriptions:
                await self._link.settle()
                return
            subject = self.subjects.live(channel)
            self._subscriptions[channel] = self._link.subscribe(subject, partial(self._hear, channel))
            try:
                await self._link.settle()
                self._link.check_permitted(subject)
                # In a cluster our server may know of the subscription before the stream's does. It tells it on the way that
                # this question takes too, so when the answer is here the stream's server knows.
                self._note(channel, await self._open(channel))
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
        self._heard.pop(channel, None)
        self._doubted.discard(channel)
        if sid is not None:
            self._link.unsubscribe(sid)

    def _hear(self, channel: ChannelKey, message: Message) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            heard = decode(message.payload, Entry)
        except ServiceError:
            self._metrics.broker_errors.labels(reply="message").inc()
            sink.interrupted([channel])  # whatever it was, the stream knows what should have come
            return
        if heard.delivery is not Delivery.EPHEMERAL and not self._fits(channel, heard):
            self._doubted.add(channel)
            sink.interrupted([channel])
            return
        sink.deliver(heard.event(channel))

    def _fits(self, channel: ChannelKey, entry: Entry) -> bool:
        """Notes an event; False if another one had its offset or rev before, so that NATS must have lost that."""
        heard = self._heard.get(channel)
        if heard is None or heard.epoch != entry.epoch:
            self._doubted.discard(channel)
            heard = Heard(entry.epoch)
        if channel in self._doubted:
            return False
        if entry.offset is not None:
            if entry.offset < heard.offset or (entry.offset == heard.offset and entry.id != heard.id):
                return False
            heard = heard._replace(offset=entry.offset, id=entry.id)
        elif entry.rev is not None:
            if entry.rev < heard.rev or (entry.rev == heard.rev and entry.id != heard.state_id):
                return False
            heard = heard._replace(rev=entry.rev, state_id=entry.id)
        self._heard[channel] = heard
        return True

    # --- reading --------------------------------------------------------------------------------------------------------

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """As the port says. If the channel changes all the time, `state` may hold values newer than `rev`; none is missing."""
        async with self.call():
            head, state = await self._read(channel)
            found = () if since is None else await self._missed(channel, head, since, max_events, max_bytes)
        return Snapshot(
            top=head.top,
            state=[one.event(channel) for one in state],
            missed=[] if found is None else found,
            recovered=None if since is None else found is not None,
            rev=head.rev,
        )

    async def _read(self, channel: ChannelKey) -> Read:
        """The head, and the values up to it."""
        backoff = Backoff(*PAUSES)
        for remaining in reversed(range(TRIES)):
            head = await self._open(channel)
            if not head.rev:
                return Read(head, ())
            state = [decode(one.data, Entry) for one in await self.stream.all_of([self.subjects.state(channel)])]
            newest = max((one.rev or 0 for one in state), default=0)
            now = milliseconds(self._clock)
            if newest == head.rev or not head.has_state(now) or (newest > head.rev and not remaining):
                return Read(head, values(head, state, now))
            await asyncio.sleep(backoff.next())
        raise unavailable("JetStream's replicas are too far behind")

    async def _missed(
        self, channel: ChannelKey, head: Head, since: Position, max_events: int, max_bytes: int
    ) -> Sequence[Event] | None:
        """The events after a position, or None if they cannot be had, or are too many."""
        behind = head.offset - since.offset
        if since.epoch != head.epoch or behind < 0 or behind > max_events or since.offset < head.first - 1:
            return None
        if behind == 0:
            return missed(since, head.top, ())
        if since.offset:
            # Before the rest is read, its size: the event at the position tells it.
            start = await self._entries(channel, head, since.offset, since.offset)
            if not start or start[0].id != since.id or head.total - start[0].total > max_bytes:
                return None
        elif head.total > max_bytes:
            return None
        kept = await self._entries(channel, head, max(1, since.offset), head.offset)
        if not kept or kept[-1].offset != head.offset:
            return None
        return missed(since, head.top, [one.event(channel) for one in kept])

    async def _entries(self, channel: ChannelKey, head: Head, low: int, high: int) -> Sequence[Entry]:
        """Those from `low` to `high` that still count, without a hole before the newest."""
        subjects = [self.subjects.durable(channel, segment) for segment in segments(low, high)]
        backoff = Backoff(*PAUSES)
        for remaining in reversed(range(TRIES)):
            kept = [decode(one.data, Entry) for one in await self.stream.all_of(subjects)]
            found = unbroken(head, (one for one in kept if _within(one, low, high)), milliseconds(self._clock))
            # What is not there has expired, or the replica that answered has not got it yet.
            if len(found) == high - low + 1 or not self.stream.replicated or not remaining:
                return found
            await asyncio.sleep(backoff.next())
        return ()

    async def marks(self, channels: Sequence[ChannelKey]) -> Sequence[Mark]:
        """As the port says. A channel of which NATS has lost something begins its new epoch here."""
        gate = asyncio.Semaphore(HEADS_AT_ONCE)

        async def mark(channel: ChannelKey, heard: Heard | None, kept: Kept | None) -> Mark:
            if kept is None:
                return Mark("", 0, 0)
            head = decode(kept.data, Head)
            if heard is not None and _is_over(head, heard, channel in self._doubted):
                async with gate:  # a replica that is behind may have answered: the leader decides
                    head = (await self._known(channel)).head
            return Mark(head.epoch, head.offset, head.rev)

        async with self.call():
            heard = [self._heard.get(channel) for channel in channels]  # before asking, see `_known`
            subjects = list(map(self.subjects.head, channels))
            found = await self.stream.several(subjects)
            return await asyncio.gather(*map(mark, channels, heard, map(found.get, subjects)))

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> Page:
        """As the port says."""
        async with self.call():
            head = await self._open(channel)
            low = head.first if after is None else max(head.first, after + 1)
            high = head.offset if before is None else min(head.offset, before - 1)
            if not head.has_history(milliseconds(self._clock)):
                high = 0
            find = self._last if after is None else self._earliest
            found = await find(channel, head, low, high, limit + 1) if low <= high else ()
        kept = found[-limit:] if after is None else found[:limit]
        return Page(head.top, [one.event(channel) for one in kept], more=len(found) > limit)

    async def _last(self, channel: ChannelKey, head: Head, low: int, high: int, most: int) -> Sequence[Entry]:
        """The last of those between, at most so many."""
        return await self._entries(channel, head, max(low, high - most + 1), high)

    async def _earliest(self, channel: ChannelKey, head: Head, low: int, high: int, most: int) -> Sequence[Entry]:
        """The first of those between, at most so many; those that have expired are passed over."""
        found: list[Entry] = []
        size = most
        while low <= high and len(found) < most:
            upto = min(high, low + size - 1)
            part = await self._entries(channel, head, low, upto)
            if found and part and part[0].offset != low:
                found.clear()  # a hole: what counts begins after it
            if not part:
                size *= 4
            found.extend(part)
            low = upto + 1
        return found[:most]

    async def channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
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


def _is_over(head: Head, heard: Heard, doubted: bool) -> bool:
    """Whether the head's epoch has to end, for what this node has heard of it."""
    return head.lacks(heard) or (doubted and head.epoch == heard.epoch)


def _passes(before: int, after: int, entries: int) -> bool:
    """Whether it is time to trim: once for every quarter of what is kept."""
    step = max(SEGMENT, entries // 4)
    return before // step != after // step


def _within(one: Entry, low: int, high: int) -> bool:
    return one.offset is not None and low <= one.offset <= high
