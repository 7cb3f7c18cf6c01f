"""Presence: who is in a channel, told once per user, with leaves debounced so that a reload or a deploy flaps nobody."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import Raw

from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.clock import Clock, Timer, milliseconds
from service.core.event import Delivery, Publication
from service.core.presence import PresenceStore
from service.errors import ServiceError
from service.protocol.messages import PresenceMember, PresenceView
from service.realtime.publisher import new_id
from service.realtime.supervisor import Supervisor
from service.telemetry.metrics import Metrics

JOINED, LEFT, COUNT = "presence.joined", "presence.left", "presence.count"

COUNT_INTERVAL = 1.0
"""Seconds between two counts of one channel, at least."""

_log = structlog.get_logger("presence")
_T = TypeVar("_T")
_Entry = tuple[ChannelKey, str, str]


class Presence:
    """Joins and leaves of this node's connections.

    A leave reaches the store only after the debounce: until then the user counts as present everywhere, so coming back
    on any node is no join, and the late leave of the old connection is not the last one.
    """

    def __init__(
        self,
        store: PresenceStore,
        broker: Broker,
        clock: Clock,
        supervisor: Supervisor,
        metrics: Metrics,
        *,
        debounce: float,
        most_members: int,
    ) -> None:
        self._store = store
        self._broker = broker
        self._clock = clock
        self._supervisor = supervisor
        self._metrics = metrics
        self._debounce = debounce
        self._most_members = most_members
        self._leaving: dict[_Entry, Timer] = {}
        self._counting: dict[ChannelKey, Timer] = {}

    async def join(self, channel: ChannelKey, user: str, connection: str, info: bytes | None) -> None:
        """Enters a connection; tells the channel if it is the user's first."""
        timer = self._leaving.pop((channel, user, connection), None)
        if timer is not None:
            timer.cancel()
        if await self._store.join(channel, user, connection, info):
            await self._tell(channel, JOINED, user, info)

    def leave(self, channel: ChannelKey, user: str, connection: str) -> None:
        """Strikes a connection out after the debounce, and tells the channel if it was the user's last."""
        entry = (channel, user, connection)
        if entry in self._leaving:
            return
        self._leaving[entry] = self._clock.call_later(
            self._debounce, partial(self._spawn, "presence leave", self._leave, entry)
        )

    def _spawn(self, name: str, work: Callable[[_T], Coroutine[Any, Any, None]], argument: _T) -> None:
        self._supervisor.spawn(name, work(argument))

    async def _leave(self, entry: _Entry) -> None:
        if self._leaving.pop(entry, None) is None:
            return
        channel, user, connection = entry
        if await self._store.leave(channel, user, connection):
            await self._tell(channel, LEFT, user, None)

    async def view(self, channel: ChannelKey) -> PresenceView:
        """Who is in the channel; above the settable size only how many."""
        count = await self._store.count(channel)
        if count > self._most_members:  # sorting thousands of names for each of thousands who join would be for nothing
            return PresenceView(count=count)
        count, members = await self._store.members(channel, self._most_members)
        return PresenceView(
            count=count,
            members=[
                PresenceMember(
                    user=member.user,
                    connections=member.connections,
                    info=Raw(member.info) if member.info is not None else msgspec.UNSET,
                )
                for member in members
            ],
        )

    async def _tell(self, channel: ChannelKey, kind: str, user: str, info: bytes | None) -> None:
        if await self._store.count(channel) > self._most_members:
            self._count_soon(channel)
            return
        data: dict[str, str | Raw] = {"user": user}
        if info is not None:
            data["info"] = Raw(info)
        await self._publish(channel, kind, msgspec.json.encode(data), sender=user, key=user)

    def _count_soon(self, channel: ChannelKey) -> None:
        if channel not in self._counting:
            self._counting[channel] = self._clock.call_later(
                COUNT_INTERVAL, partial(self._spawn, "presence count", self._count, channel)
            )

    async def _count(self, channel: ChannelKey) -> None:
        self._counting.pop(channel, None)
        count = await self._store.count(channel)
        await self._publish(channel, COUNT, msgspec.json.encode({"count": count}), sender=None, key="")

    async def _publish(self, channel: ChannelKey, kind: str, data: bytes, *, sender: str | None, key: str) -> None:
        self._metrics.presence_events.labels(kind=kind.partition(".")[2]).inc()
        publication = Publication(
            channel=channel,
            type=kind,
            id=new_id(),
            delivery=Delivery.EPHEMERAL,
            data=data,
            sender=sender,
            at=milliseconds(self._clock),
            key=key,
        )
        try:
            await self._broker.publish(publication)
        except ServiceError as error:  # the broker is away: the next snapshot tells who is there
            _log.warning("presence not told", kind=kind, code=error.code.code)

    def close(self) -> None:
        """Lets the timers go; what is in the store expires there."""
        for timer in (*self._leaving.values(), *self._counting.values()):
            timer.cancel()
        self._leaving.clear()
        self._counting.clear()
