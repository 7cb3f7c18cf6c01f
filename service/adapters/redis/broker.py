"""The Broker on Redis or Valkey: one server, Sentinel or Cluster.

Each operation on a channel is one Lua script, so it happens as of one moment. A life of the server (a process in a role) is
a *generation*: what it writes for the first time in a new one begins a new epoch, because the life before may have
accepted what this one does not know (see channel.lua).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import zip_longest
from typing import Any

import structlog

from service.adapters.redis import event_codec
from service.adapters.redis.calls import Calls
from service.adapters.redis.channel_index import ChannelIndex
from service.adapters.redis.config import RedisConfig, milliseconds, namer
from service.adapters.redis.connections.link import Argument, pack
from service.adapters.redis.connections.shard_map import Shards, unavailable
from service.adapters.redis.lua.scripts import HISTORY, KEEP, LISTED, PUBLISH, SNAPSHOT, STREAM_HEAD
from service.adapters.redis.publish_template import PublishTemplate, PublishTemplates
from service.adapters.store.config import ServerTime
from service.aio.tasks import TaskSupervisor
from service.core import epoch as epochs
from service.core.broker import ChannelInfo, DeliveredHead, EventSink, HistoryPage, PublishResult, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication
from service.core.position import Position, events_after
from service.errors import ServiceError
from service.telemetry.metrics import Metrics
from service.telemetry.outage import LimitedLog

LIST_CHUNK = 200
"""Channels looked at together to list them, at most."""
PAGE_BYTES = 4_194_304
"""After which a page ends early: it is cut to less anyway where it is sent."""

_DURABLE, _EPHEMERAL = Delivery.DURABLE, Delivery.EPHEMERAL  # members of an Enum are slow to look up

_log = structlog.get_logger("redis")
_events_not_understood = LimitedLog(_log, "stored events not understood", level="error")
_position_not_understood = LimitedLog(_log, "stored position not understood", level="error")


class RedisBroker:
    """Keeps the port's guarantee over any number of nodes.

    A call that was sent when the connection broke is sent again: a receipt makes that harmless. Events that enter no stream
    have none, so they are not.
    """

    delivers_synchronously = False

    def __init__(self, config: RedisConfig, metrics: Metrics, on_time: ServerTime | None = None) -> None:
        """`on_time` gets what the servers' clocks show, at each connection and every few seconds."""
        self._metrics = metrics
        self._not_understood = LimitedLog(_log, "message not understood", level="error")
        self.names = namer(config.prefix, config.address.database)
        self.shards = Shards(
            config, metrics, on_message=self._deliver, on_interrupted=self._interrupted, on_time=on_time
        )
        self.calls = Calls(config, metrics, self.shards)
        self._publish = "SPUBLISH" if self.shards.is_cluster else "PUBLISH"
        self._forms = PublishTemplates(
            self.names,
            seed=self.calls.seed,
            position_ttl=self.calls.position_ttl,
            idempotency_window=config.idempotency_window,
            publish=self._publish,
        )
        self._sink: EventSink | None = None
        self._channels: dict[bytes, ChannelKey] = {}
        self._empty_ttl = config.empty_ttl
        self._empty: dict[ChannelKey, None] = {}
        """Subscribed channels in which nothing had been published when they were read."""
        self._index = ChannelIndex(
            self.calls, config.prefix, metrics, look=self._look, subscribed=self._channels.values
        )
        self._tasks = TaskSupervisor(metrics.process.count_task_death)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """As the port says; waits `config.start` seconds for servers that cannot be reached."""
        self.shards.open()
        self._sink = sink
        self._metrics.broker.broker_queue.set_function(lambda: self.calls.waiting)
        self._metrics.broker.broker_subscriptions.set_function(lambda: len(self._channels))
        self._metrics.broker.broker_empty_channels.set_function(lambda: len(self._empty))
        try:
            await self.shards.reach()
        except BaseException:
            await self.close()
            raise
        self._tasks.spawn("redis index", self._index.keep())
        self._tasks.spawn("redis empty channels", self._go_on_keeping())

    async def close(self) -> None:
        """As the port says."""
        self._sink = None
        await self._tasks.cancel()
        await self.shards.close()
        self._channels.clear()
        self._empty.clear()

    async def check(self) -> None:
        """As the port says."""
        self.shards.check()

    # --- the port -----------------------------------------------------------------------------------------------------

    async def publish(self, publication: Publication) -> PublishResult:
        """As the port says. Raises ValueError for a durable or latest event without retention: a fault in the caller."""
        if publication.delivery is _EPHEMERAL:
            names = self.names(publication.channel)
            message = pack((self._publish, names.events, event_codec.ephemeral(publication)))
            await self.calls.call(names.tag, lambda _: message, repeats=False)
            return PublishResult(publication.id, "")
        form = self._forms.of(publication)
        reply = await self.calls.call(form.tag, partial(form.fill_in, publication), PUBLISH)
        duplicate = enters = False
        if type(reply) is list:
            duplicate = len(reply) == 1
            enters, reply = not duplicate, reply[0]
        epoch, _, at = reply.decode().partition(" ")
        place = int(at)
        if not duplicate:
            if place <= form.place and epoch == form.epoch:
                await self._given_twice(publication, form, place)
            form.epoch, form.place, form.id, form.at = epoch, place, publication.id, publication.at
        if enters or (duplicate and place == 1):  # the first may have been accepted and not entered
            await self._index.enter(publication.channel, form.retention.ttl)
        if publication.delivery is _DURABLE:
            return PublishResult(publication.id, epoch, place, None, duplicate)
        return PublishResult(publication.id, epoch, None, place, duplicate)

    async def _given_twice(self, publication: Publication, form: PublishTemplate, place: int) -> None:
        """An offset or a state version was given that this node has seen given before: the channel was set back."""
        if form.is_durable:
            known = DeliveredHead(Position(form.epoch, form.place, form.id), 0, lowest_repeat=place)
        else:
            known = DeliveredHead(Position(form.epoch, 0), form.place)
        age = max(0, publication.at - form.at)
        with suppress(ServiceError):  # the event is accepted; who knows more will find out
            await self._mark(publication.channel, known, sure=True, age=age)

    def _mark(
        self, channel: ChannelKey, known: DeliveredHead | None, *, sure: bool = False, age: int | None = None
    ) -> Awaitable[Any]:
        words: tuple[Argument, ...] = ("", 0, "", 0, 0, "", "")
        if known is not None:
            at, again = known.position, "" if known.lowest_repeat is None else known.lowest_repeat
            words = (
                at.epoch,
                at.offset,
                at.id or "",
                known.state_version,
                int(sure),
                again,
                "" if age is None else age,
            )
        return self.calls.run(STREAM_HEAD, self.names(channel), *words)

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        self.shards.require_open()
        name = self.names(channel).events
        await self._index.enter(channel)
        self.shards.require_open()  # it may have been closed meanwhile
        self._channels[name] = channel
        try:
            await self.shards.subscribe(name)
        finally:
            if not self.shards.wants(name):
                self._channels.pop(name, None)

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        self.shards.require_open()
        name = self.names(channel).events
        if self._channels.pop(name, None) is not None:
            self._empty.pop(channel, None)
            self._index.leave(channel)
        self.shards.unsubscribe(name)

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """As the port says."""
        names = self.names(channel)
        epoch, offset, id_, state_version, state, kept, base = await self.calls.run(
            SNAPSHOT,
            names,
            since.epoch if since is not None else "",
            since.offset if since is not None else "",
            max_events,
            max_bytes,
            int(epochs.MIN_EPOCH_AGE * 1_000_000),
        )
        if not offset and not state_version and names.events in self._channels:
            self._empty[channel] = None
        with _readable():
            top = _position(epoch, offset, id_)
            values = _state(channel, state, top.epoch)
            entries = [_entry(channel, entry, top.epoch) for entry in kept or ()]
        if since is None:
            return Snapshot(top, values, (), None, state_version, base)
        found = events_after(since, top, entries) if kept is not None or since.offset == top.offset else None
        if found is None or sum(len(event.data) for event in found) > max_bytes:
            return Snapshot(top, values, (), recovered=False, state_version=state_version, epoch_start=base)
        return Snapshot(top, values, found, recovered=True, state_version=state_version, epoch_start=base)

    async def stream_heads(
        self, channels: Sequence[ChannelKey], known: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """As the port says: one pipeline."""
        self.shards.require_open()
        answers = await asyncio.gather(
            *(self._mark(channel, what) for channel, what in zip_longest(channels, known)), return_exceptions=True
        )
        marks = [_mark(answer) for answer in answers]
        failed = next((answer for answer in answers if isinstance(answer, BaseException)), None)
        if failed is not None and not any(marks):
            raise failed
        return marks

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """As the port says."""
        epoch, offset, id_, entries, more = await self.calls.run(
            HISTORY,
            self.names(channel),
            "" if after is None else after,
            "" if before is None else before,
            limit,
            PAGE_BYTES,
        )
        with _readable():
            top = _position(epoch, offset, id_)
            return HistoryPage(top, [_entry(channel, entry, top.epoch) for entry in entries], bool(more))

    async def list_channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
        """As the port says. Looks at no more of the tenant's index than it lists, and what is on its way out of it."""
        found: list[ChannelInfo] = []
        low = f"[{prefix}" if prefix else "-"
        while len(found) < limit:
            wanted = min(limit - len(found), LIST_CHUNK)
            page = await self._index.page(tenant, low, wanted)
            names = [name for name in page if name.startswith(prefix)]
            infos = await asyncio.gather(
                *(self._info(ChannelKey(tenant, name)) for name in names), return_exceptions=True
            )
            for info in infos:
                if isinstance(info, BaseException):
                    raise info
                if info is not None:
                    found.append(info)
            if len(names) < wanted:
                return found
            low = f"({page[-1]}"
        return found

    # --- listing and empty channels -----------------------------------------------------------------------------------

    async def _listed(self, channel: ChannelKey) -> tuple[int, int, bytes, int, bytes]:
        """See listed.lua."""
        names = self.names(channel)
        counted = "SHARDNUMSUB" if self._publish == "SPUBLISH" else "NUMSUB"
        listed, holds, epoch, offset, id_ = await self.calls.run(LISTED, names, counted, names.events)
        return listed, holds, epoch, offset, id_

    async def _look(self, channel: ChannelKey) -> tuple[bool, int]:
        listed, holds, *_ = await self._listed(channel)
        return bool(listed), holds

    async def _info(self, channel: ChannelKey) -> ChannelInfo | None:
        listed, _, epoch, offset, id_ = await self._listed(channel)
        if not listed:
            self._index.doubt(channel)
            return None
        if epoch:
            return ChannelInfo(channel.name, _position(epoch, offset, id_))
        return ChannelInfo(channel.name, (await self.snapshot(channel, None, 0, 0)).position)

    async def _go_on_keeping(self) -> None:
        while True:
            await asyncio.sleep(self._empty_ttl / 3)
            await self.keep_empty()

    async def keep_empty(self) -> None:
        """Keeps the positions of empty channels that this node is subscribed to; called again within `config.empty_ttl`."""
        waiting = list(self._empty)
        for start in range(0, len(waiting), LIST_CHUNK):
            some = waiting[start : start + LIST_CHUNK]
            keeps = (self.calls.run(KEEP, self.names(channel), milliseconds(self._empty_ttl)) for channel in some)
            for channel, kept in zip(some, await asyncio.gather(*keeps, return_exceptions=True), strict=True):
                if kept == 0:
                    self._empty.pop(channel, None)

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def _deliver(self, name: bytes, message: bytes) -> None:
        channel, sink = self._channels.get(name), self._sink
        if channel is None or sink is None:
            return
        try:
            event = event_codec.parse(channel, message)
        except ValueError as error:  # somebody else writes here, or a newer version does
            self._metrics.broker.broker_errors.labels(reply="message").inc()
            self._not_understood(kind=type(error).__name__)
            return
        sink.deliver(event)

    def _interrupted(self, names: Collection[bytes]) -> None:
        if self._sink is not None:
            channels = [self._channels[name] for name in names if name in self._channels]
            if channels:
                self._sink.interrupted(channels)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError) as error:  # msgspec's errors are ValueErrors
        _events_not_understood(kind=type(error).__name__)
        raise unavailable("what Redis holds of the channel was not written by this version") from error


def _mark(answer: Any) -> StreamHead | None:
    if isinstance(answer, BaseException):
        return None
    try:
        epoch, offset, state_version = answer
        return StreamHead(epoch.decode(), offset, state_version)
    except (ValueError, TypeError):  # a hand at redis-cli, or another version
        _position_not_understood()
        return None


def _position(epoch: bytes, offset: int, id_: bytes) -> Position:
    return Position(epoch.decode(), offset, id_.decode() if offset else None)


def _entry(channel: ChannelKey, entry: list[Any], epoch: str) -> Event:
    id_, fields = entry
    return event_codec.decode(channel, Delivery.DURABLE, fields[1], epoch, offset=int(id_.partition(b"-")[0]))


def _state(channel: ChannelKey, flat: list[bytes], epoch: str) -> list[Event]:
    events = []
    for value in flat[1::2]:
        head, _, body = value.partition(b"\n")
        events.append(
            event_codec.decode(channel, Delivery.LATEST, body, epoch, state_version=int(head.partition(b" ")[0]))
        )
    return sorted(events, key=lambda event: event.state_version or 0)
