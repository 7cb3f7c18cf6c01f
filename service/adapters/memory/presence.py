"""The PresenceStore of a service that runs as one node."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

import structlog

from service.adapters.store import channel_members
from service.adapters.store.channel_members import Effect, Members
from service.core.channel import ChannelKey
from service.core.event import Publication
from service.core.presence import (
    ExpiredEntry,
    FoundUser,
    LeaveEventFactory,
    Member,
    PresenceChange,
    PresenceEntry,
    PresenceJoin,
)
from service.errors import ServiceError

_NEVER = 0
"""The expiry of all entries: no other process could fail to renew them."""

_log = structlog.get_logger("presence")


class MemoryPresence:
    """Keeps the guarantee of the port within one process. Holds one entry for each subscription of a connection."""

    __slots__ = ("_channels", "_locks", "_max_announced_users", "_publish")

    def __init__(self, publish: Callable[[Publication], Awaitable[object]], max_announced_users: int) -> None:
        """`publish` is the broker's. A channel with more than `max_announced_users` gets no events."""
        self._channels: dict[ChannelKey, Members] = {}
        self._locks: WeakValueDictionary[ChannelKey, asyncio.Lock] = WeakValueDictionary()
        """Each is held from a change until its event is published, so that events have the order of the changes."""
        self._publish = publish
        self._max_announced_users = max_announced_users

    async def join(self, join: PresenceJoin) -> PresenceChange:
        """Adds the connection, and publishes the event."""
        async with self._lock(join.entry.channel):
            members = self._channels.setdefault(join.entry.channel, {})
            effect = channel_members.add(members, join, _NEVER)
            return await self._announce(len(members), effect, join.event)

    async def update(self, update: PresenceJoin) -> PresenceChange | None:
        """Replaces the user's info, and publishes the event."""
        async with self._lock(update.entry.channel):
            members = self._channels.get(update.entry.channel, {})
            effect = channel_members.update(members, update)
            return None if effect is None else await self._announce(len(members), effect, update.event)

    async def join_all(self, joins: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """Adds one connection after another."""
        return [await self.join(join) for join in joins]

    async def leave(self, entry: PresenceEntry, event: Publication) -> PresenceChange:
        """Removes the connection, and publishes the event."""
        async with self._lock(entry.channel):
            members = self._channels.get(entry.channel, {})
            has_left = bool(channel_members.remove(members, entry.user, [entry.connection]))
            if has_left and not members:
                del self._channels[entry.channel]
            return await self._announce(len(members), Effect(has_left, has_left), event)

    async def leave_all(
        self, entries: Sequence[PresenceEntry], leave_event: LeaveEventFactory, *, only_expired: bool = False
    ) -> Sequence[PresenceChange]:
        """Removes one connection after another. No entry expires."""
        if only_expired:
            return [PresenceChange(False, await self.count(entry.channel), False) for entry in entries]
        return [await self.leave(entry, leave_event(entry.channel, entry.user)) for entry in entries]

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """Returns the missing entries; none expires."""
        return [entry for entry in entries if not self._has(entry)]

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """Removes nothing."""
        return ()

    async def expired(self, channels: Sequence[ChannelKey]) -> Sequence[ExpiredEntry]:
        """Returns nothing."""
        return ()

    async def find_all(self, users: Sequence[tuple[ChannelKey, str]]) -> Sequence[FoundUser | None]:
        """Returns the users."""
        found = [self._channels.get(channel, {}).get(user) for channel, user in users]
        return [
            FoundUser(frozenset(one), frozenset(), channel_members.shown_info(one)) if one else None for one in found
        ]

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """Returns the members."""
        members = self._channels.get(channel, {})
        return len(members), [
            Member(user, len(members[user]), channel_members.shown_info(members[user]))
            for user in heapq.nsmallest(limit, members)
        ]

    async def count(self, channel: ChannelKey) -> int:
        """Returns the number of users."""
        return len(self._channels.get(channel, {}))

    async def counts(self, channels: Sequence[ChannelKey]) -> Sequence[int]:
        """Returns the number of users in each channel."""
        return [len(self._channels.get(channel, {})) for channel in channels]

    def _has(self, entry: PresenceEntry) -> bool:
        return entry.connection in self._channels.get(entry.channel, {}).get(entry.user, {})

    def _lock(self, channel: ChannelKey) -> asyncio.Lock:
        return self._locks.setdefault(channel, asyncio.Lock())

    async def _announce(self, users: int, effect: Effect, event: Publication) -> PresenceChange:
        if not effect.is_news or users > self._max_announced_users:
            return PresenceChange(effect.changed, users, False)
        try:
            await self._publish(event)
        except ServiceError as error:  # the change has happened; the caller publishes the number of users
            _log.warning("presence_event_not_published", kind=event.type, code=error.code.code)
            return PresenceChange(effect.changed, users, False)
        return PresenceChange(effect.changed, users, True)
