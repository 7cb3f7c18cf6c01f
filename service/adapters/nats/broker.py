"""The Broker over NATS: one JetStream stream keeps everything, and passes it on as soon as it is kept.

A publish is one batch that NATS keeps as a whole or not at all: the event, its id, and the channel's head (how far it has
come), the last two on condition that nobody else has written them meanwhile. So offsets are dense and ids unique whatever the
nodes do at the same time. docs/adr/0013-nats.md has the reasons, and what is promised less than with Redis.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

from service.adapters.nats.config import NatsConfig, Subjects, text
from service.adapters.nats.link import Link, jitter, unavailable
from service.adapters.nats.records import (
    SEGMENT,
    Entry,
    Head,
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
from service.adapters.nats.stream import Conflict, Stream, Write
from service.adapters.nats.wire import Message, publish
from service.core.broker import ChannelInfo, EventSink, Mark, Page, Receipt, Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position, missed
from service.errors import ServiceError

MOST_IN_BATCH = 100
"""Publications kept together; NATS takes at most 1 000 messages in a batch, and each of these is two."""
HEADS_REMEMBERED = 10_000
"""Channels whose head this node remembers after publishing; for others a publish reads it first."""
TRIES = 5
"""Readings of a channel that changes under them, or by a replica that is behind, before what was read has to do."""
PAUSE = 0.01
"""Seconds between two of those, and at most between two tries to publish against other nodes."""


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
    """A publication that waits for its turn."""

    publication: Publication
    retention: Retention
    receipt: Receipt | None = None
    gone: bool = False
    """Whether its publisher does not wait any more."""


@dataclass(slots=True, eq=False)
class Turn:
    """The publications of one channel on this node: whoever has the lock takes all that wait along."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    queue: deque[Waiting] = field(default_factory=deque)


class NatsBroker:
    """Keeps the port's guarantee as docs/guarantees.md says for NATS. Nothing here outlives `broker.timeout`; when more than
    `broker.queue` calls wait, or while there is no connection, calls fail at once."""

    def __init__(self, config: NatsConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._subjects = Subjects(config.prefix)
        self._link = Link(config, self._restored)
        prefix = config.prefix
        self.stream = Stream(self._link, prefix, self._subjects.kept, (f"{prefix}.e.>", f"{prefix}.live.>"))
        self._sink: EventSink | None = None
        self._state = "not started yet"
        self._calls = 0
        self._subscriptions: dict[ChannelKey, int] = {}
        self._turns: dict[ChannelKey, Turn] = {}
        self._heads: OrderedDict[ChannelKey, Known] = OrderedDict()
        self._seen: dict[ChannelKey, Mark] = {}
        """How far each subscribed channel had come when something was last heard of it."""

    # --- life -----------------------------------------------------------------------------------------------------------

    @property
    def reconnects(self) -> int:
        """Connections made after the first, for metrics."""
        return self._link.reconnects

    @property
    def waiting(self) -> int:
        """Calls that wait for NATS, for metrics."""
        return self._calls

    async def start(self, sink: EventSink) -> None:
        """As the port says."""
        if self._state != "not started yet":
            raise unavailable("the broker has been started before")
        self._state = "starting"
        try:
            async with asyncio.timeout(self._config.timeout):
                await self._link.start()
                await self.stream.ensure()
        except TimeoutError:
            await self._link.close()
            raise unavailable(f"NATS has not answered within {self._config.timeout:g} s") from None
        except BaseException:
            await self._link.close()
            raise
        self._sink = sink
        self._state = "started"

    async def close(self) -> None:
        """As the port says."""
        self._state = "closed"
        self._sink = None
        await self._link.close()
        self._subscriptions.clear()
        self._seen.clear()

    async def check(self) -> None:
        """As the port says. Makes the stream anew if somebody has deleted it."""
        async with self.call():
            await self.stream.ensure()

    async def _restored(self) -> None:
        """After each reconnect: what was heard and known before may be outdated, and some may have been missed."""
        await self.stream.ensure()
        for channel, known in self._heads.items():
            self._note(channel, known.head)
        self._heads.clear()
        if self._sink is not None:
            self._sink.interrupted(None)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[EventSink]:
        """Bounds one call, in time and in number.

        Raises ServiceError, also in place of TimeoutError.
        """
        if self._sink is None:
            raise unavailable(f"the broker is {self._state}")
        if not self._link.usable:
            raise unavailable("there is no connection to NATS")
        if self._calls >= self._config.queue:
            raise unavailable(f"{self._config.queue} calls wait for NATS already")
        self._calls += 1
        try:
            async with asyncio.timeout(self._config.timeout):
                yield self._sink
        except TimeoutError:
            raise unavailable(f"NATS has not answered within {self._config.timeout:g} s") from None
        finally:
            self._calls -= 1

    # --- publishing -----------------------------------------------------------------------------------------------------

    async def publish(self, publication: Publication) -> Receipt:
        """As the port says. Raises ValueError for a durable or latest event without retention: a fault in the caller."""
        async with self.call():
            if publication.delivery is Delivery.EPHEMERAL:
                data = encode(entry(publication, milliseconds(self._clock)))
                self._link.send(publish(self._subjects.ephemeral(publication.channel), data))
                await self._link.settle()
                return Receipt(publication.id, epoch="")
            if publication.retention is None:
                raise ValueError(f"a {publication.delivery.value} publication needs a retention")
            return await self._in_turn(Waiting(publication, publication.retention))

    async def _in_turn(self, waiting: Waiting) -> Receipt:
        channel = waiting.publication.channel
        turn = self._turns.setdefault(channel, Turn())
        turn.queue.append(waiting)
        try:
            async with turn.lock:
                while waiting.receipt is None:
                    await self._take_turn(channel, turn)
            return waiting.receipt
        finally:
            waiting.gone = True
            if waiting in turn.queue:
                turn.queue.remove(waiting)
            if not turn.queue and not turn.lock.locked() and self._turns.get(channel) is turn:
                del self._turns[channel]

    async def _take_turn(self, channel: ChannelKey, turn: Turn) -> None:
        """Publishes what waits, in order; what fails goes on waiting, for the turn of its own publisher."""
        batch = _without_repeats(turn.queue)
        for _ in batch:
            turn.queue.popleft()
        try:
            await self._append(channel, batch)
        finally:
            turn.queue.extendleft(one for one in reversed(batch) if one.receipt is None and not one.gone)

    async def _append(self, channel: ChannelKey, batch: Sequence[Waiting]) -> None:
        """Gives each of the batch its receipt. Tries until nobody else has come in between."""
        known = self._heads.get(channel) or await self._known(channel)
        expired: dict[str, int] = {}
        while todo := [one for one in batch if one.receipt is None]:
            now = milliseconds(self._clock)
            head, receipts, writes = self._writes(known.head, todo, expired, now)
            writes.append(self._head(channel, head, after=known.sequence))
            try:
                sequence = await self.stream.write(writes)
            except Conflict:
                self._heads.pop(channel, None)
                known, outcomes = await asyncio.gather(self._known(channel), self._outcomes(todo, expired))
                for one, outcome in zip(todo, outcomes, strict=True):
                    one.receipt = outcome
                await asyncio.sleep(jitter(PAUSE) if known.sequence else 0)
                continue
            self._remember(channel, Known(sequence, head))
            self._trim(channel, known.head, head)
            for one, receipt in zip(todo, receipts, strict=True):
                one.receipt = receipt

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
            return Write(self._subjects.durable(channel, what.offset // SEGMENT), encode(what), retention.ttl)
        subject = self._subjects.value(channel, publication.type, publication.key)
        return Write(subject, encode(what), retention.ttl, only=True)

    def _head(self, channel: ChannelKey, head: Head, after: int) -> Write:
        ttl = max(self._config.position_ttl, head.ttl, head.state_ttl)
        return Write(self._subjects.head(channel), encode(head), ttl, only=True, after=after)

    def _id_of(self, publication: Publication) -> str:
        return self._subjects.id(publication.channel, publication.sender, publication.id)

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
            self.stream.trim(self._subjects.durable(channel), after.entries)
        if _passes(before.rev, after.rev, after.state_entries):
            self.stream.trim(self._subjects.state(channel), after.state_entries)

    # --- heads ----------------------------------------------------------------------------------------------------------

    async def _known(self, channel: ChannelKey) -> Known:
        """The channel's head, from the stream; a new one if there is none, or NATS has lost something it had accepted."""
        seen = self._seen.get(
            channel
        )  # before asking: what is heard while the answer is on its way may be newer than it
        kept = await self.stream.last(self._subjects.head(channel))
        if kept is None:
            return Known(0, new_head())
        head = decode(kept.data, Head)
        if seen is not None and seen.epoch == head.epoch and (head.offset < seen.offset or head.rev < seen.rev):
            return await self._write_head(channel, head.in_new_epoch(), after=kept.sequence)
        return Known(kept.sequence, head)

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
        if channel in self._subscriptions:
            self._seen[channel] = Mark(head.epoch, head.offset, head.rev)

    # --- hearing --------------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        async with self.call():
            if channel in self._subscriptions:
                await self._link.settle()
                return
            subject = self._subjects.live(channel)
            self._subscriptions[channel] = self._link.subscribe(subject, partial(self._hear, channel))
            try:
                await self._link.settle()
                self._link.check_permitted(subject)
                # In a cluster our server may know of the subscription before the stream's does. It tells it on the way that
                # this question takes too, so when the answer is here the stream's server knows.
                await self._open(channel)
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
        self._seen.pop(channel, None)
        if sid is not None:
            self._link.unsubscribe(sid)

    def _hear(self, channel: ChannelKey, message: Message) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            heard = decode(message.payload, Entry)
        except ServiceError:
            sink.interrupted([channel])  # whatever it was, the stream knows what should have come
            return
        if heard.delivery is not Delivery.EPHEMERAL and self._is_repeated(channel, heard):
            sink.interrupted([channel])
            return
        sink.deliver(heard.event(channel))

    def _is_repeated(self, channel: ChannelKey, heard: Entry) -> bool:
        """Whether this offset or rev was given before, so that NATS must have lost what had it; else notes it."""
        seen = self._seen.get(channel)
        if seen is None or seen.epoch != heard.epoch:
            seen = Mark(heard.epoch, 0, 0)
        if (heard.offset or seen.offset + 1) <= seen.offset or (heard.rev or seen.rev + 1) <= seen.rev:
            return True
        self._seen[channel] = Mark(heard.epoch, heard.offset or seen.offset, heard.rev or seen.rev)
        return False

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
        for remaining in reversed(range(TRIES)):
            head = await self._open(channel)
            if not head.rev:
                return Read(head, ())
            state = [decode(one.data, Entry) for one in await self.stream.all_of([self._subjects.state(channel)])]
            newest = max((one.rev or 0 for one in state), default=0)
            now = milliseconds(self._clock)
            if newest == head.rev or not head.has_state(now) or (newest > head.rev and not remaining):
                return Read(head, values(head, state, now))
            await asyncio.sleep(jitter(PAUSE))
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
        subjects = [self._subjects.durable(channel, segment) for segment in segments(low, high)]
        for remaining in reversed(range(TRIES)):
            kept = [decode(one.data, Entry) for one in await self.stream.all_of(subjects)]
            found = unbroken(head, (one for one in kept if _within(one, low, high)), milliseconds(self._clock))
            # What is not there has expired, or the replica that answered has not got it yet.
            if len(found) == high - low + 1 or not self.stream.replicated or not remaining:
                return found
            await asyncio.sleep(jitter(PAUSE))
        return ()

    async def marks(self, channels: Sequence[ChannelKey]) -> Sequence[Mark]:
        """As the port says."""
        async with self.call():
            subjects = list(map(self._subjects.head, channels))
            kept = await self.stream.several(subjects)
        found = (decode(kept[subject].data, Head) if subject in kept else None for subject in subjects)
        return [Mark("", 0, 0) if head is None else Mark(head.epoch, head.offset, head.rev) for head in found]

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
            subjects = await self.stream.names(self._subjects.heads(tenant))
            names = {text(subject.rpartition(".")[2]): subject for subject in subjects}
            wanted = sorted(name for name in names if name.startswith(prefix))
            found: list[ChannelInfo] = []
            while wanted and len(found) < limit:
                part, wanted = wanted[:MOST_IN_BATCH], wanted[MOST_IN_BATCH:]
                kept = await self.stream.several([names[name] for name in part])
                heads = {name: decode(kept[names[name]].data, Head) for name in part if names[name] in kept}
                found.extend(
                    ChannelInfo(name, head.top) for name, head in heads.items() if self._in_use(tenant, name, head)
                )
        return found[:limit]

    def _in_use(self, tenant: str, name: str, head: Head) -> bool:
        now = milliseconds(self._clock)
        return ChannelKey(tenant, name) in self._subscriptions or head.has_history(now) or head.has_state(now)


def _without_repeats(queue: Iterable[Waiting]) -> Sequence[Waiting]:
    """The first of the queue, up to one whose id is among them already: it has to wait for what becomes of that."""
    batch: list[Waiting] = []
    ids: set[tuple[str | None, str]] = set()
    for one in islice(queue, MOST_IN_BATCH):
        id = (one.publication.sender, one.publication.id)
        if id in ids:
            break
        ids.add(id)
        batch.append(one)
    return batch


def _passes(before: int, after: int, entries: int) -> bool:
    """Whether it is time to trim: once for every quarter of what is kept."""
    step = max(SEGMENT, entries // 4)
    return before // step != after // step


def _within(one: Entry, low: int, high: int) -> bool:
    return one.offset is not None and low <= one.offset <= high
