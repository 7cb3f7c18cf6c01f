"""The PresenceStore that all nodes share at Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from service.adapters.redis import event_codec
from service.adapters.redis.lua import scripts
from service.adapters.redis.stores.client import Argument, Call, RedisClient
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

MAX_RENEWED = 500
"""Entries that one run of a script renews: half a millisecond of Redis' time."""
MAX_REMOVED = 500
"""Expired entries of one channel that one call removes."""
LEASE_RATIO = 0.1
"""Part of the TTL for which only one node removes the expired entries of a channel. Nodes try again after a sixth of
the TTL, so it must be shorter."""
KEY_TTL_RATIO = 2
"""How many TTLs of an entry a channel's keys stay without a renewal. With more than one, entries that expire while
Redis is unreachable can be renewed without events."""

_JOIN = scripts.load("presence", "presence_join")
_UPDATE = scripts.load("presence", "presence_update")
_LEAVE = scripts.load("presence", "presence_leave")
_RENEW = scripts.load("presence", "presence_renew")
_EXPIRED = scripts.load("presence", "presence_expired")
_LIST_EXPIRED = scripts.load("presence", "presence_list_expired")
_FIND = scripts.load("presence", "presence_find")
_MEMBERS = scripts.load("presence", "presence_members")


class RedisPresence:
    """Changes the members and publishes the event in one script, by the time of Redis."""

    def __init__(self, client: RedisClient, *, ttl: float, max_announced_users: int, keep: float | None = None) -> None:
        """A channel with more than `max_announced_users` gets no events; none gets any with -1. `keep`: seconds that a channel's
        keys stay without a renewal, instead of `KEY_TTL_RATIO`."""
        self._client = client
        self._ttl = int(ttl * 1000)
        self._keys_ttl = KEY_TTL_RATIO * self._ttl if keep is None else int(keep * 1000)
        self._max_announced_users = max_announced_users

    async def join(self, join: PresenceJoin) -> PresenceChange:
        """Runs lua/presence_join.lua."""
        return _change(await self._client.run(_JOIN, *self._join_call(join)))

    async def update(self, update: PresenceJoin) -> PresenceChange | None:
        """Runs lua/presence_update.lua."""
        (channel, user, connection), info, event = update
        arguments = (user, connection, info or b"", *self._event_arguments(event))
        reply = await self._client.run(_UPDATE, self._keys_and_events(channel), arguments)
        return _change(reply) if reply else None

    async def join_all(self, joins: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """Runs lua/presence_join.lua for each connection."""
        return [_change(reply) for reply in await self._client.run_all(_JOIN, list(map(self._join_call, joins)))]

    async def leave(self, entry: PresenceEntry, event: Publication) -> PresenceChange:
        """Runs lua/presence_leave.lua."""
        return _change(await self._client.run(_LEAVE, *self._leave_call(entry, event, only_expired=False)))

    async def leave_all(
        self, entries: Sequence[PresenceEntry], leave_event: LeaveEventFactory, *, only_expired: bool = False
    ) -> Sequence[PresenceChange]:
        """Runs lua/presence_leave.lua for each connection."""
        calls = [
            self._leave_call(entry, leave_event(entry.channel, entry.user), only_expired=only_expired)
            for entry in entries
        ]
        return [_change(reply) for reply in await self._client.run_all(_LEAVE, calls)]

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """Runs lua/presence_renew.lua for each channel; without entries it only checks that Redis answers."""
        if not entries:
            await self._client.check()
            return ()
        groups = list(_by_channel(entries))
        calls = [
            Call(self._keys(group[0].channel), (self._ttl, self._keys_ttl, *map(_entry_name, group)))
            for group in groups
        ]
        replies = await self._client.run_all(_RENEW, calls)
        return [group[number - 1] for group, missing in zip(groups, replies, strict=True) for number in missing]

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """Runs lua/presence_expired.lua to find the entries, and lua/presence_leave.lua to remove them."""
        lease = max(1, int(LEASE_RATIO * self._ttl))
        searches = [
            Call((*self._keys(channel), self._key(channel, "lease")), (lease, MAX_REMOVED)) for channel in channels
        ]
        replies = await self._client.run_all(_EXPIRED, searches)
        expired = [_entry(channel, name) for channel, names in zip(channels, replies, strict=True) for name in names]
        removals = [
            self._leave_call(entry, leave_event(entry.channel, entry.user), only_expired=True) for entry in expired
        ]
        changes = map(_change, await self._client.run_all(_LEAVE, removals))
        return [(entry.channel, change) for entry, change in zip(expired, changes, strict=True) if change.changed]

    async def expired(self, channels: Sequence[ChannelKey]) -> Sequence[ExpiredEntry]:
        """Runs lua/presence_list_expired.lua for each channel."""
        calls = [Call(self._keys(channel), (MAX_REMOVED,)) for channel in channels]
        replies = await self._client.run_all(_LIST_EXPIRED, calls)
        expired: list[ExpiredEntry] = []
        for channel, found in zip(channels, replies, strict=True):
            entries = [_entry(channel, name) for name in found[::3]]
            returned = Counter(entry.user for entry in entries)
            expired += [
                ExpiredEntry(entry, info or None, size == returned[entry.user])
                for entry, info, size in zip(entries, found[1::3], found[2::3], strict=True)
            ]
        return expired

    async def find_all(self, users: Sequence[tuple[ChannelKey, str]]) -> Sequence[FoundUser | None]:
        """Runs lua/presence_find.lua for each user."""
        replies = await self._client.run_all(_FIND, [Call(self._keys(channel), (user,)) for channel, user in users])
        return [_found(found) if found else None for found in replies]

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """Runs lua/presence_members.lua."""
        count, *rest = await self._client.run(_MEMBERS, self._keys(channel), (limit,))
        fields = iter(rest)
        # A user without a live connection is a member until the leave event, with one connection.
        return count, [
            Member(user.decode(), max(1, live), info or None)
            for user, live, info in zip(fields, fields, fields, strict=True)
        ]

    async def count(self, channel: ChannelKey) -> int:
        """Reads the size of the hash of users."""
        return int(await self._client.command("HLEN", self._key(channel, "users")))

    async def counts(self, channels: Sequence[ChannelKey]) -> Sequence[int]:
        """Reads the sizes of the hashes of users, many in each pipeline."""
        return await self._client.command_all([("HLEN", self._key(channel, "users")) for channel in channels])

    def _join_call(self, join: PresenceJoin) -> Call:
        (channel, user, connection), info, event = join
        ttls = (self._ttl, self._keys_ttl)
        arguments = (user, connection, info or b"", *ttls, *self._event_arguments(event))
        return Call(self._keys_and_events(channel), arguments)

    def _leave_call(self, entry: PresenceEntry, event: Publication, *, only_expired: bool) -> Call:
        channel, user, connection = entry
        arguments = (user, connection, int(only_expired), *self._event_arguments(event))
        return Call(self._keys_and_events(channel), arguments)

    def _event_arguments(self, event: Publication) -> tuple[Argument, ...]:
        return (self._max_announced_users, self._client.publish_command, event_codec.encode_ephemeral(event))

    def _keys_and_events(self, channel: ChannelKey) -> tuple[str, ...]:
        return (*self._keys(channel), self._client.keys.events(channel))

    def _keys(self, channel: ChannelKey) -> tuple[str, str, str]:
        return self._key(channel, "users"), self._key(channel, "expiries"), self._key(channel, "infos")

    def _key(self, channel: ChannelKey, part: str) -> str:
        return self._client.keys.of_channel(channel, f"presence-{part}")


def _by_channel(entries: Iterable[PresenceEntry]) -> Iterable[Sequence[PresenceEntry]]:
    """Groups entries by channel, at most `MAX_RENEWED` in a group."""
    channels: dict[ChannelKey, list[PresenceEntry]] = {}
    for entry in entries:
        channels.setdefault(entry.channel, []).append(entry)
    for group in channels.values():
        left = iter(group)
        while part := list(islice(left, MAX_RENEWED)):
            yield part


def _entry_name(entry: PresenceEntry) -> str:
    return f"{entry.connection} {entry.user}"


def _entry(channel: ChannelKey, name: bytes) -> PresenceEntry:
    connection, _, user = name.decode().partition(" ")
    return PresenceEntry(channel, user, connection)


def _found(reply: Sequence[Any]) -> FoundUser:
    info, live, *connections = reply
    names = [one.decode() for one in connections]
    return FoundUser(frozenset(names[:live]), frozenset(names[live:]), info or None)


def _change(reply: Sequence[int]) -> PresenceChange:
    changed, users, published = reply
    return PresenceChange(bool(changed), users, bool(published))
