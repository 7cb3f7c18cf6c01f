"""The Broker on Redis or Valkey: one server, Sentinel or Cluster.

Each operation on a channel is one Lua script, so it is atomic. A channel's epoch belongs to one life of the server,
which is a process in one role. The first write in another life begins a new epoch, because events of the previous life
may be lost (lua/channel.lua).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import Any

import structlog

from service.adapters.redis import event_codec
from service.adapters.redis.channel_index import ChannelIndex, Listing
from service.adapters.redis.command_executor import Call, CommandExecutor
from service.adapters.redis.config import RedisConfig, milliseconds
from service.adapters.redis.connections.link import Argument
from service.adapters.redis.connections.shard_map import ShardMap
from service.adapters.redis.keys import channel_keys
from service.adapters.redis.lua.scripts import CHANNEL_INFO, HISTORY, RENEW_EMPTY, SNAPSHOT, STREAM_HEAD
from service.adapters.redis.publish_call import EphemeralCall, PublishCall
from service.adapters.redis.publish_template import PublishTemplate, PublishTemplates
from service.adapters.redis.removal import EventRemover
from service.adapters.store.config import ServerTimeObserver
from service.adapters.store.empty_channels import EmptyChannels
from service.adapters.store.errors import unavailable
from service.aio.pending import Pending
from service.aio.tasks import TaskSupervisor
from service.core import epoch as epochs
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
from service.core.event import Delivery, Event, Publication, last_within
from service.core.position import Position, events_after
from service.errors import ServiceError
from service.telemetry.metrics import Metrics
from service.telemetry.outage import LimitedLog

MAX_LISTED = 200
"""Channels that are checked together for a listing."""
MAX_PAGE_BYTES = 4_194_304
"""Bytes after which a page of history ends early."""

_EPHEMERAL = Delivery.EPHEMERAL  # a member of an Enum is slow to look up

_log = structlog.get_logger("redis")
_log_unreadable_events = LimitedLog(_log, "stored_events_unreadable", level="error")
_log_unreadable_head = LimitedLog(_log, "stored_position_unreadable", level="error")


class RedisBroker:
    """Keeps the guarantee of the port for any number of nodes.

    A call whose connection breaks is sent again. Stored publish results make that harmless. Ephemeral events have no
    stored result, so they are sent once.
    """

    delivers_synchronously = False

    def __init__(self, config: RedisConfig, metrics: Metrics, on_server_time: ServerTimeObserver | None = None) -> None:
        """`on_server_time` gets the time of the servers' clocks, at each connection and every few seconds."""
        self._metrics = metrics
        self._log_unreadable_message = LimitedLog(_log, "broker_message_unreadable", level="error")
        self.keys = channel_keys(config.prefix, config.address.database)
        """Names the keys of a channel."""
        self.shards = ShardMap(
            config,
            metrics,
            on_message=self._on_message,
            on_interrupted=self._on_interrupted,
            on_server_time=on_server_time,
        )
        self._tasks = TaskSupervisor(metrics.process.count_task_death)
        self.executor = CommandExecutor(config, metrics, self.shards, self._tasks)
        self._publish_command = "SPUBLISH" if self.shards.is_cluster else "PUBLISH"
        self._templates = PublishTemplates(
            self.keys,
            epoch_seed=self.executor.epoch_seed,
            position_ttl=self.executor.position_ttl,
            idempotency_window=config.idempotency_window,
            publish_command=self._publish_command,
        )
        self._remover = EventRemover(self.executor, self._publish_command)
        self._sink: EventSink | None = None
        self._subscriptions: dict[bytes, ChannelKey] = {}
        """Channels that this node is subscribed to, by their Pub/Sub channels."""
        self._empty_ttl = milliseconds(config.empty_ttl)
        self._empty = EmptyChannels[None](config.empty_ttl, self._renew_empty)
        self._index = ChannelIndex(
            self.executor,
            config.prefix,
            metrics,
            check_channel=self._check_listing,
            subscribed=self._subscriptions.values,
        )

    # --- start and end ------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """Connects to all servers; waits `config.start_timeout` seconds for those that cannot be reached."""
        self.shards.open()
        self._sink = sink
        self._metrics.broker.broker_queue.set_function(lambda: self.executor.pending)
        self._metrics.broker.broker_subscriptions.set_function(lambda: len(self._subscriptions))
        self._metrics.broker.broker_empty_channels.set_function(lambda: len(self._empty))
        try:
            await self.shards.connect()
        except BaseException:
            await self.close()
            raise
        self._tasks.spawn("redis channel index", self._index.run())
        self._tasks.spawn("empty channel renewal", self._empty.run())

    async def close(self) -> None:
        """Closes all connections."""
        self._sink = None
        await self._tasks.close()
        await self.shards.close()
        self._subscriptions.clear()
        self._empty.clear()

    async def check(self) -> None:
        """Checks that all connections are open; they send pings all the time."""
        self.shards.check()

    # --- publishing ---------------------------------------------------------------------------------------------------

    def start_publish(self, publication: Publication) -> Pending[PublishResult]:
        """Sends a call of lua/publish.lua with this loop iteration's other calls. An ephemeral event is only published.

        Raises ValueError for a durable or latest event without retention: a fault in the caller.
        """
        call: Call[PublishResult]
        if publication.delivery is _EPHEMERAL:
            call = EphemeralCall(publication, self.keys(publication.channel), self._publish_command)
        else:
            call = PublishCall(publication, self._templates.get(publication), self)
        return self.executor.start(call)

    async def publish(self, publication: Publication) -> PublishResult:
        """Waits for `start_publish`."""
        return await self.start_publish(publication)

    async def report_repeat(self, publication: Publication, template: PublishTemplate, number: int) -> None:
        """Reports that Redis gave an offset or state version twice: the channel was set back."""
        if template.is_durable:
            delivered = DeliveredHead(Position(template.epoch, template.number, template.id), 0, lowest_repeat=number)
        else:
            delivered = DeliveredHead(Position(template.epoch, 0), template.number)
        age = max(0, publication.at - template.accepted_at)
        with suppress(ServiceError):  # the event is accepted; nodes that have delivered more will report it
            await self._read_head(publication.channel, delivered, is_certain=True, age=age)

    async def list_channel(self, channel: ChannelKey, ttl: float) -> None:
        """Adds a channel to its tenant's index, for `ttl` seconds."""
        await self._index.add(channel, ttl)

    # --- subscriptions ------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: ChannelKey) -> None:
        """Returns when the server has confirmed the subscription."""
        self.shards.require_open()
        name = self.keys(channel).events
        await self._index.add(channel)
        self.shards.require_open()  # it may have been closed meanwhile
        self._subscriptions[name] = channel
        try:
            await self.shards.subscribe(name)
        finally:
            if not self.shards.is_subscribed(name):
                self._subscriptions.pop(name, None)

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """Drops messages of the channel from now on, and unsubscribes at the server."""
        self.shards.require_open()
        name = self.keys(channel).events
        if self._subscriptions.pop(name, None) is not None:
            self._empty.discard(channel)
            self._index.unsubscribed(channel)
        self.shards.unsubscribe(name)

    def _on_message(self, name: bytes, message: bytes) -> None:
        channel, sink = self._subscriptions.get(name), self._sink
        if channel is None or sink is None:
            return
        try:
            event = event_codec.decode_message(channel, message)
        except ValueError as error:  # another program, or a newer version, has published this
            self._metrics.broker.broker_errors.labels(reply="message").inc()
            self._log_unreadable_message(kind=type(error).__name__)
            return
        sink.deliver(event)

    def _on_interrupted(self, names: Collection[bytes]) -> None:
        if self._sink is not None:
            channels = [self._subscriptions[name] for name in names if name in self._subscriptions]
            if channels:
                self._sink.interrupted(channels)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        """Runs lua/snapshot.lua."""
        keys = self.keys(channel)
        epoch, offset, id_, state_version, state, kept, epoch_start, now, last = await self.executor.run_script(
            SNAPSHOT,
            keys,
            since.epoch if since is not None else "",
            since.offset if since is not None else "",
            max_events,
            max_bytes,
            int(epochs.MIN_EPOCH_AGE * 1_000_000),
            tail,
        )
        if not offset and not state_version and keys.events in self._subscriptions:
            self._empty.add(channel, None)
        with _unreadable_as_unavailable():
            position = _position(epoch, offset, id_)
            values = _state(channel, state, position.epoch, now)
            events = [_stream_event(channel, entry, position.epoch) for entry in kept or ()]
            newest = [_stream_event(channel, entry, position.epoch) for entry in last or ()]
        missed: Sequence[Event] | None = None
        if since is not None and (kept is not None or since.offset == position.offset):
            missed = events_after(since, position, events)
        if missed is not None and sum(len(event.data) for event in missed) > max_bytes:
            missed = None
        return Snapshot(
            position,
            values,
            missed or (),
            None if since is None else missed is not None,
            state_version,
            epoch_start,
            last_within(newest, max_bytes),
        )

    async def stream_heads(
        self, channels: Sequence[ChannelKey], delivered: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """Runs lua/stream_head.lua for each channel, in one pipeline."""
        self.shards.require_open()
        replies = await asyncio.gather(
            *(self._read_head(channel, known) for channel, known in zip_longest(channels, delivered)),
            return_exceptions=True,
        )
        heads = [_stream_head(reply) for reply in replies]
        failed = next((reply for reply in replies if isinstance(reply, BaseException)), None)
        if failed is not None and not any(heads):
            raise failed
        return heads

    def _read_head(
        self,
        channel: ChannelKey,
        delivered: DeliveredHead | None,
        *,
        is_certain: bool = False,
        age: int | None = None,
    ) -> Awaitable[Any]:
        """Runs lua/stream_head.lua. `is_certain`: the channel was set back at most `age` milliseconds ago."""
        arguments: tuple[Argument, ...] = ("", 0, "", 0, 0, "", "")
        if delivered is not None:
            at, repeat = delivered.position, delivered.lowest_repeat
            arguments = (
                at.epoch,
                at.offset,
                at.id or "",
                delivered.state_version,
                int(is_certain),
                "" if repeat is None else repeat,
                "" if age is None else age,
            )
        return self.executor.run_script(STREAM_HEAD, self.keys(channel), *arguments)

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """Runs lua/history.lua."""
        epoch, offset, id_, entries, has_more = await self.executor.run_script(
            HISTORY,
            self.keys(channel),
            "" if after is None else after,
            "" if before is None else before,
            limit,
            MAX_PAGE_BYTES,
        )
        with _unreadable_as_unavailable():
            position = _position(epoch, offset, id_)
            events = [_stream_event(channel, entry, position.epoch) for entry in entries]
            return HistoryPage(position, events, bool(has_more))

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        """Reads the kept removals."""
        key = self.keys(channel).removed_values
        entries = await self.executor.run_command(key, "ZRANGE", key, f"({after}", "+inf", "BYSCORE")
        with _unreadable_as_unavailable():
            return [event_codec.decode_removal(channel, entry) for entry in entries]

    # --- taking back --------------------------------------------------------------------------------------------------

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """Runs lua/remove.lua. Redis frees an event's memory once the part of the stream around it is trimmed."""
        return await self._remover.remove(self.keys(channel), events)

    async def purge(self, channel: ChannelKey) -> Position | None:
        """Runs lua/purge.lua."""
        return await self._remover.purge(channel, self.keys(channel))

    # --- listing and empty channels -----------------------------------------------------------------------------------

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        """Reads one entry of the tenant's index for each listed channel, and the entries of expired channels."""
        found: list[ChannelInfo] = []
        low = f"[{prefix}" if prefix else "-"
        if after and after >= prefix:
            low = f"({after}"
        while len(found) < limit:
            wanted = min(limit - len(found), MAX_LISTED)
            page = await self._index.page(tenant, low, wanted)
            names = [name for name in page if name.startswith(prefix)]
            infos = await asyncio.gather(
                *(self._channel_info(ChannelKey(tenant, name)) for name in names), return_exceptions=True
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

    async def _read_info(self, channel: ChannelKey) -> tuple[int, int, bytes, int, bytes]:
        """Runs lua/channel_info.lua."""
        keys = self.keys(channel)
        count_command = "SHARDNUMSUB" if self._publish_command == "SPUBLISH" else "NUMSUB"
        is_listed, valid_for, epoch, offset, id_ = await self.executor.run_script(
            CHANNEL_INFO, keys, count_command, keys.events
        )
        return is_listed, valid_for, epoch, offset, id_

    async def _check_listing(self, channel: ChannelKey) -> Listing:
        is_listed, valid_for, *_ = await self._read_info(channel)
        return Listing(bool(is_listed), valid_for)

    async def _channel_info(self, channel: ChannelKey) -> ChannelInfo | None:
        is_listed, _, epoch, offset, id_ = await self._read_info(channel)
        if not is_listed:
            self._index.unlisted(channel)
            return None
        if epoch:
            return ChannelInfo(channel.name, _position(epoch, offset, id_))
        return ChannelInfo(channel.name, (await self.snapshot(channel, None, 0, 0)).position)

    async def renew_empty_channels(self) -> None:
        """Renews the positions of this node's empty channels once. A task does the same periodically."""
        await self._empty.renew()

    async def _renew_empty(self, channels: Mapping[ChannelKey, None]) -> Mapping[ChannelKey, None]:
        renewals = (self.executor.run_script(RENEW_EMPTY, self.keys(channel), self._empty_ttl) for channel in channels)
        replies = await asyncio.gather(*renewals, return_exceptions=True)
        return {channel: None for channel, reply in zip(channels, replies, strict=True) if reply != 0}


@contextmanager
def _unreadable_as_unavailable() -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError) as error:  # msgspec's errors are ValueErrors
        _log_unreadable_events(kind=type(error).__name__)
        raise unavailable("what Redis holds of the channel was not written by this version") from error


def _stream_head(reply: Any) -> StreamHead | None:
    if isinstance(reply, BaseException):
        return None
    try:
        epoch, offset, state_version = reply
        return StreamHead(epoch.decode(), offset, state_version)
    except (ValueError, TypeError):  # another program or version has written it
        _log_unreadable_head()
        return None


def _position(epoch: bytes, offset: int, id_: bytes) -> Position:
    return Position(epoch.decode(), offset, id_.decode() if offset else None)


def _stream_event(channel: ChannelKey, entry: list[Any], epoch: str) -> Event:
    id_, fields = entry
    return event_codec.decode_stored(channel, fields[1], epoch, int(id_.partition(b"-")[0]))


def _state(channel: ChannelKey, flat: list[bytes], epoch: str, now: int) -> list[Event]:
    values = (event_codec.decode_value(channel, value, epoch, now) for value in flat[1::2])
    return sorted((event for event in values if event is not None), key=lambda event: event.state_version or 0)
