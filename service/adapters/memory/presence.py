"""The PresenceStore of a service that runs as one node."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

import structlog

from service.core.channel import ChannelKey
from service.core.event import Publication
from service.core.presence import LeaveEventFactory, Member, PresenceChange, PresenceEntry, PresenceJoin
from service.errors import ServiceError

_log = structlog.get_logger("presence")


class MemoryPresence:
    """Keeps the port's guarantee within one process. Bounded by what it is told: connections × subscriptions.

    `publish` is the broker's. Nothing expires: no other process could fall silent.
    """

    __slots__ = ("_channels", "_locks", "_most_told", "_publish")

    def __init__(self, publish: Callable[[Publication], Awaitable[object]], most_told: int) -> None:
        # channel → user → connection → info, the newest last: that is shown
        self._channels: dict[ChannelKey, dict[str, dict[str, bytes | None]]] = {}
        # Held across a change and its telling, so that a channel is told in the order of its changes.
        self._locks: WeakValueDictionary[ChannelKey, asyncio.Lock] = WeakValueDictionary()
        self._publish = publish
        self._most_told = most_told

    async def join(self, entrance: PresenceJoin) -> PresenceChange:
        """As the port says."""
        (channel, user, connection), info, joined = entrance
        async with self._lock(channel):
            users = self._channels.setdefault(channel, {})
            connections = users.setdefault(user, {})
            if connection in connections:
                return PresenceChange(False, len(users), False)
            first = not connections
            shown = info if first else _shown(connections)
            connections[connection] = shown if info is None else info
            is_news = first or _shown(connections) != shown
            return (
                await self._changed(len(users), joined, changed=first)
                if is_news
                else PresenceChange(False, len(users), False)
            )

    async def update(self, entrance: PresenceJoin) -> PresenceChange:
        """As the port says."""
        (channel, user, connection), info, joined = entrance
        async with self._lock(channel):
            users = self._channels.get(channel, {})
            connections = users.get(user, {})
            if connection not in connections:
                return PresenceChange(False, len(users), False)
            is_news = _shown(connections) != info
            del connections[connection]
            connections[connection] = info  # the newest from now on
            return (
                await self._changed(len(users), joined, changed=False)
                if is_news
                else PresenceChange(False, len(users), False)
            )

    async def join_all(self, entrances: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """As the port says."""
        return [await self.join(entrance) for entrance in entrances]

    async def leave(self, entry: PresenceEntry, left: Publication) -> PresenceChange:
        """As the port says."""
        channel, user, connection = entry
        async with self._lock(channel):
            users = self._channels.get(channel, {})
            connections = users.get(user, {})
            if connection not in connections:
                return PresenceChange(False, len(users), False)
            shown = _shown(connections)
            del connections[connection]
            if connections:
                connections[next(reversed(connections))] = shown
                return PresenceChange(False, len(users), False)
            del users[user]
            if not users:
                del self._channels[channel]
            return await self._changed(len(users), left, changed=True)

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """As the port says."""
        return [entry for entry in entries if not self._holds(entry)]

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """As the port says."""
        return ()

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """As the port says."""
        users = self._channels.get(channel, {})
        return len(users), [_member(user, users[user]) for user in heapq.nsmallest(limit, users)]

    async def count(self, channel: ChannelKey) -> int:
        """As the port says."""
        return len(self._channels.get(channel, {}))

    def _holds(self, entry: PresenceEntry) -> bool:
        return entry.connection in self._channels.get(entry.channel, {}).get(entry.user, {})

    def _lock(self, channel: ChannelKey) -> asyncio.Lock:
        return self._locks.setdefault(channel, asyncio.Lock())

    async def _changed(self, users: int, event: Publication, *, changed: bool) -> PresenceChange:
        if users > self._most_told:
            return PresenceChange(changed, users, False)
        try:
            await self._publish(event)
        except ServiceError as error:  # the broker is away, and the change has happened: the caller tells the number
            _log.warning("presence not told", kind=event.type, code=error.code.code)
            return PresenceChange(changed, users, False)
        return PresenceChange(changed, users, True)


def _member(user: str, connections: dict[str, bytes | None]) -> Member:
    return Member(user, len(connections), _shown(connections))


def _shown(connections: dict[str, bytes | None]) -> bytes | None:
    return next(reversed(connections.values()))
