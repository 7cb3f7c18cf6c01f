"""The PresenceStore that all nodes share at a Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from service.adapters.redis import event_codec
from service.adapters.redis.lua import scripts
from service.adapters.redis.stores.client import Call, RedisClient
from service.core.channel import ChannelKey
from service.core.event import Publication
from service.core.presence import LeaveEventFactory, Member, PresenceChange, PresenceEntry, PresenceJoin

RENEWED = 500
"""Entries renewed by one run of a script: half a millisecond of Redis' time."""
SWEPT = 500
"""Entries of one channel struck out in one sweep."""
LEASE = 0.1
"""Part of the ttl for which a node that sweeps a channel keeps others from looking too; below their interval (a sixth)."""
KEPT = 2
"""How many times the ttl everything of a channel stays when no node speaks of it. More than one: entries that have expired
while Redis could not be reached come back without a word."""

_JOIN = scripts.load("presence", "presence_join")
_UPDATE = scripts.load("presence", "presence_update")
_LEAVE = scripts.load("presence", "presence_leave")
_RENEW = scripts.load("presence", "presence_renew")
_EXPIRED = scripts.load("presence", "presence_expired")
_MEMBERS = scripts.load("presence", "presence_members")


class RedisPresence:
    """Keeps the port's guarantee by doing each change and its telling in one script. Time is that of Redis."""

    def __init__(self, client: RedisClient, *, ttl: float, most_told: int) -> None:
        self._client = client
        self._ttl = int(ttl * 1000)
        self._most_told = most_told

    async def join(self, entrance: PresenceJoin) -> PresenceChange:
        """As the port says."""
        return _change(await self._client.run(_JOIN, *self._joining(entrance)))

    async def update(self, entrance: PresenceJoin) -> PresenceChange:
        """As the port says."""
        (channel, user, connection), info, joined = entrance
        keys = (*self._keys(channel), self._client.keys.events(channel))
        told = (self._most_told, self._client.publish, event_codec.ephemeral(joined))
        return _change(await self._client.run(_UPDATE, keys, (user, connection, info or b"", *told)))

    async def join_all(self, entrances: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """As the port says."""
        return [_change(found) for found in await self._client.run_all(_JOIN, list(map(self._joining, entrances)))]

    async def leave(self, entry: PresenceEntry, left: Publication) -> PresenceChange:
        """As the port says."""
        return _change(await self._client.run(_LEAVE, *self._leaving(entry, left, expired=False)))

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """As the port says."""
        if not entries:
            await self._client.check()
            return ()
        groups = list(_grouped(entries))
        calls = [
            Call(self._keys(group[0].channel), (self._ttl, KEPT * self._ttl, *map(_name, group))) for group in groups
        ]
        found = await self._client.run_all(_RENEW, calls)
        return [group[place - 1] for group, missing in zip(groups, found, strict=True) for place in missing]

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """As the port says."""
        lease = max(1, int(LEASE * self._ttl))
        looks = [Call((*self._keys(channel), self._key(channel, "lease")), (lease, SWEPT)) for channel in channels]
        found = await self._client.run_all(_EXPIRED, looks)
        gone = [_entry(channel, name) for channel, names in zip(channels, found, strict=True) for name in names]
        strikes = [self._leaving(entry, leave_event(entry.channel, entry.user), expired=True) for entry in gone]
        changes = map(_change, await self._client.run_all(_LEAVE, strikes))
        return [(entry.channel, change) for entry, change in zip(gone, changes, strict=True) if change.changed]

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """As the port says."""
        count, *rest = await self._client.run(_MEMBERS, self._keys(channel), (limit,))
        words = iter(rest)
        # A user whose connections have all fallen silent is there until told as gone, by one connection at least.
        return count, [
            Member(user.decode(), max(1, live), info or None)
            for user, live, info in zip(words, words, words, strict=True)
        ]

    async def count(self, channel: ChannelKey) -> int:
        """As the port says."""
        return int(await self._client.command("HLEN", self._key(channel, "users")))

    def _joining(self, entrance: PresenceJoin) -> Call:
        (channel, user, connection), info, joined = entrance
        return Call(
            (*self._keys(channel), self._client.keys.events(channel)),
            (
                user,
                connection,
                info or b"",
                self._ttl,
                KEPT * self._ttl,
                self._most_told,
                self._client.publish,
                event_codec.ephemeral(joined),
            ),
        )

    def _leaving(self, entry: PresenceEntry, left: Publication, *, expired: bool) -> Call:
        channel, user, connection = entry
        return Call(
            (*self._keys(channel), self._client.keys.events(channel)),
            (user, connection, int(expired), self._most_told, self._client.publish, event_codec.ephemeral(left)),
        )

    def _keys(self, channel: ChannelKey) -> tuple[str, str, str]:
        return self._key(channel, "users"), self._key(channel, "expiries"), self._key(channel, "infos")

    def _key(self, channel: ChannelKey, part: str) -> str:
        return self._client.keys.channel(channel, f"presence-{part}")


def _grouped(entries: Iterable[PresenceEntry]) -> Iterable[Sequence[PresenceEntry]]:
    """The entries by channel, not too many at a time."""
    channels: dict[ChannelKey, list[PresenceEntry]] = {}
    for entry in entries:
        channels.setdefault(entry.channel, []).append(entry)
    for group in channels.values():
        left = iter(group)
        while some := list(islice(left, RENEWED)):
            yield some


def _name(entry: PresenceEntry) -> str:
    return f"{entry.connection} {entry.user}"


def _entry(channel: ChannelKey, name: bytes) -> PresenceEntry:
    connection, _, user = name.decode().partition(" ")
    return PresenceEntry(channel, user, connection)


def _change(found: Sequence[int]) -> PresenceChange:
    changed, users, told = found
    return PresenceChange(bool(changed), users, bool(told))
