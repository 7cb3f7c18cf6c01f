"""The PresenceStore that all nodes share at a NATS."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from service.adapters.nats.stores.documents import Documents, Draft, each
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Publication
from service.core.presence import LeaveEventFactory, Member, PresenceChange, PresenceEntry, PresenceJoin

KEPT = 2
"""How many times the ttl everything of a channel stays when no node speaks of it. More than one: entries that have expired
while NATS could not be reached come back without a word."""
MAX_TOLD_AT_ONCE = 500
"""Events told with one change; NATS takes at most 1 000 messages in a batch."""


T = TypeVar("T")


class Place(NamedTuple):
    """One connection of a user."""

    expiry: int
    info: bytes | None


class Roster(msgspec.Struct, array_like=True):
    """Who is in a channel: users, and their connections, those with the newest token last."""

    users: dict[str, dict[str, Place]] = msgspec.field(default_factory=dict)
    spoken: int = 0
    """When a node last added or renewed an entry."""


class Work(NamedTuple):
    """Some entrances of one call into one channel, and their places in the call."""

    channel: ChannelKey
    entrances: Sequence[tuple[int, PresenceJoin]]


class NatsPresence:
    """Keeps the port's guarantee by one document a channel, whose change and its telling are one batch. Time is the nodes'.

    A change writes the whole channel's document anew, which NATS takes up to its `max_payload`: some thousand users.
    """

    def __init__(self, documents: Documents, clock: Clock, *, ttl: float, most_told: int) -> None:
        self._documents = documents
        self._clock = clock
        self._ttl = int(ttl * 1000)
        self._most_told = most_told

    async def join(self, entrance: PresenceJoin) -> PresenceChange:
        """As the port says."""
        [change] = await self.join_all([entrance])
        return change

    async def join_all(self, entrances: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """As the port says."""
        channels: dict[ChannelKey, list[tuple[int, PresenceJoin]]] = {}
        for numbered in enumerate(entrances):
            channels.setdefault(numbered[1].entry.channel, []).append(numbered)
        changes: dict[int, PresenceChange] = {}
        for found in await each(self._join, [Work(*item) for item in channels.items()]):
            changes |= found
        return [changes[number] for number in range(len(entrances))]

    async def _join(self, work: Work) -> dict[int, PresenceChange]:
        changes: dict[int, PresenceChange] = {}
        for start in range(0, len(work.entrances), MAX_TOLD_AT_ONCE):
            part = work.entrances[start : start + MAX_TOLD_AT_ONCE]
            changes |= await self._change(work.channel, partial(self._enter, entrances=part))
        return changes

    def _enter(
        self, roster: Roster, now: int, entrances: Sequence[tuple[int, PresenceJoin]]
    ) -> tuple[Sequence[Publication] | None, dict[int, PresenceChange]]:
        told: list[Publication] = []
        changes: dict[int, PresenceChange] = {}
        for number, ((_, user, connection), info, joined) in entrances:
            is_first = user not in roster.users
            places = roster.users.setdefault(user, {})
            before = info if is_first else _shown(places)
            known = places.get(connection)
            brought = (before if info is None else info) if known is None else known.info
            places[connection] = Place(now + self._ttl, brought)
            is_news = is_first or _shown(places) != before
            changes[number] = self._changed(is_first, roster, joined, told, is_news=is_news)
        roster.spoken = now
        return told, changes

    async def update(self, entrance: PresenceJoin) -> PresenceChange:
        """As the port says."""
        (channel, user, connection), info, joined = entrance

        def show(roster: Roster, now: int) -> tuple[Sequence[Publication] | None, PresenceChange]:
            places = roster.users.get(user, {})
            if connection not in places:
                return None, PresenceChange(False, len(roster.users), False)
            is_news = _shown(places) != info
            places[connection] = Place(places.pop(connection).expiry, info)  # the newest from now on
            told: list[Publication] = []
            return told, self._changed(False, roster, joined, told, is_news=is_news)

        return await self._change(channel, show)

    async def leave(self, entry: PresenceEntry, left: Publication) -> PresenceChange:
        """As the port says."""

        def strike_out(roster: Roster, now: int) -> tuple[Sequence[Publication] | None, PresenceChange]:
            places = roster.users.get(entry.user, {})
            if entry.connection not in places:
                return None, PresenceChange(False, len(roster.users), False)
            _strike_out(places, [entry.connection])
            told: list[Publication] = []
            if not places:
                del roster.users[entry.user]
            return told, self._changed(not places, roster, left, told, is_news=not places)

        return await self._change(entry.channel, strike_out)

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """As the port says."""
        if not entries:
            await self._documents.check()
        channels: dict[ChannelKey, list[PresenceEntry]] = {}
        for entry in entries:
            channels.setdefault(entry.channel, []).append(entry)

        async def one(item: tuple[ChannelKey, list[PresenceEntry]]) -> Sequence[PresenceEntry]:
            return await self._change(item[0], lambda roster, now: self._renew(roster, now, item[1]))

        return [entry for missing in await each(one, channels.items()) for entry in missing]

    def _renew(
        self, roster: Roster, now: int, entries: Sequence[PresenceEntry]
    ) -> tuple[Sequence[Publication] | None, Sequence[PresenceEntry]]:
        missing = []
        for entry in entries:
            places = roster.users.get(entry.user, {})
            place = places.get(entry.connection)
            if place is None:
                missing.append(entry)
            else:
                places[entry.connection] = Place(now + self._ttl, place.info)
        if len(missing) == len(entries):
            return None, missing
        roster.spoken = now
        return (), missing

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """As the port says."""
        subjects = {self._documents.subjects.present(channel): channel for channel in channels}
        if not subjects:
            return ()
        found = await self._documents.read_all(list(subjects))
        now = milliseconds(self._clock)
        expired = [subjects[subject] for subject, data in found.items() if _has_expired(self._read(data, now), now)]

        async def one(channel: ChannelKey) -> Sequence[tuple[ChannelKey, PresenceChange]]:
            return await self._change(channel, lambda roster, now: self._expire(channel, roster, now, leave_event))

        return [change for changes in await each(one, expired) for change in changes]

    def _expire(
        self, channel: ChannelKey, roster: Roster, now: int, leave_event: LeaveEventFactory
    ) -> tuple[Sequence[Publication] | None, Sequence[tuple[ChannelKey, PresenceChange]]]:
        if not _has_expired(roster, now):
            return None, ()
        told: list[Publication] = []
        changes: list[tuple[ChannelKey, PresenceChange]] = []
        for user, places in list(roster.users.items()):
            if len(changes) == MAX_TOLD_AT_ONCE:
                break
            _strike_out(places, [connection for connection, place in places.items() if place.expiry <= now])
            if not places:
                del roster.users[user]
                changes.append((channel, self._changed(True, roster, leave_event(channel, user), told, is_news=True)))
        return told, changes

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """As the port says."""
        roster, now = await self._roster(channel)
        names = heapq.nsmallest(limit, roster.users)
        return len(roster.users), [_member(name, roster.users[name], now) for name in names]

    async def count(self, channel: ChannelKey) -> int:
        """As the port says."""
        return len((await self._roster(channel))[0].users)

    async def _roster(self, channel: ChannelKey) -> tuple[Roster, int]:
        data = await self._documents.read(self._documents.subjects.present(channel))
        now = milliseconds(self._clock)
        return self._read(data, now), now

    async def _change(
        self, channel: ChannelKey, work: Callable[[Roster, int], tuple[Sequence[Publication] | None, T]]
    ) -> T:
        """Does the work on the channel's roster. What it returns beside is to be told; None leaves everything as it is."""

        def draft(data: bytes | None) -> tuple[Draft, T]:
            now = milliseconds(self._clock)
            roster = self._read(data, now)
            told, result = work(roster, now)
            if told is None:
                return Draft(None), result
            return Draft(msgspec.msgpack.encode(roster), KEPT * self._ttl / 1000, told), result

        return await self._documents.change(self._documents.subjects.present(channel), draft)

    def _read(self, data: bytes | None, now: int) -> Roster:
        roster = Roster() if data is None else msgspec.msgpack.decode(data, type=Roster)
        return roster if now < roster.spoken + KEPT * self._ttl else Roster()

    def _changed(
        self, changed: bool, roster: Roster, event: Publication, told: list[Publication], *, is_news: bool
    ) -> PresenceChange:
        users = len(roster.users)
        tells = is_news and users <= self._most_told
        if tells:
            told.append(event)
        return PresenceChange(changed, users, tells)


def _has_expired(roster: Roster, now: int) -> bool:
    return any(place.expiry <= now for places in roster.users.values() for place in places.values())


def _member(user: str, places: dict[str, Place], now: int) -> Member:
    # Nobody has been told that a user has gone before the sweep: until then one connection counts.
    alive = sum(now < place.expiry for place in places.values())
    return Member(user, max(1, alive), _shown(places))


def _shown(places: dict[str, Place]) -> bytes | None:
    return next(reversed(places.values())).info


def _strike_out(places: dict[str, Place], connections: Sequence[str]) -> None:
    """Removes connections; what is shown of the user stays."""
    shown = _shown(places)
    for connection in connections:
        del places[connection]
    if places:
        newest, place = next(reversed(places.items()))
        places[newest] = Place(place.expiry, shown)
