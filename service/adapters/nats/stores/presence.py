"""The PresenceStore that all nodes share at NATS."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from service.adapters.nats.publish_queue import MAX_SERVER_BATCH
from service.adapters.nats.stores.documents import Documents, DocumentUpdate, gather_limited
from service.adapters.store import channel_members
from service.adapters.store.channel_members import MemberConnection, Members
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
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

DOCUMENT_TTL_RATIO = 2
"""How many TTLs of an entry a channel's document stays without a renewal. With more than one, entries that expire while
NATS is unreachable can be renewed without events."""
MAX_EVENTS = MAX_SERVER_BATCH // 2
"""Events that are written with one change."""

T = TypeVar("T")


class MembersDocument(msgspec.Struct, array_like=True):
    """The document of a channel."""

    users: Members = msgspec.field(default_factory=dict)
    renewed: int = 0
    """When a node last added or renewed an entry, in milliseconds."""


class _ChannelJoins(NamedTuple):
    """The joins of one call into one channel, each with its place in the call."""

    channel: ChannelKey
    joins: Sequence[tuple[int, PresenceJoin]]


class _Outcome(NamedTuple):
    """The result of a change of a document."""

    change: PresenceChange
    events: Sequence[Publication]


class NatsPresence:
    """Keeps one document for each channel, and writes each change in one batch with its events. Uses the nodes' clocks.

    A change rewrites the whole document. Its limit is NATS' `max_payload`: some thousand users.
    """

    def __init__(
        self,
        documents: Documents,
        clock: Clock,
        *,
        ttl: float,
        max_announced_users: int,
        keep: float | None = None,
    ) -> None:
        """A channel with more than `max_announced_users` gets no events; none gets any with -1. `keep`: seconds that a channel's
        document stays without a renewal, instead of `DOCUMENT_TTL_RATIO`."""
        self._documents = documents
        self._clock = clock
        self._ttl = int(ttl * 1000)
        self._document_ttl = DOCUMENT_TTL_RATIO * self._ttl if keep is None else int(keep * 1000)
        self._max_announced_users = max_announced_users

    async def join(self, join: PresenceJoin) -> PresenceChange:
        """Adds the connection to the channel's document."""
        [change] = await self.join_all([join])
        return change

    async def join_all(self, joins: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """Adds all connections of a channel together."""
        channels: dict[ChannelKey, list[tuple[int, PresenceJoin]]] = {}
        for numbered in enumerate(joins):
            channels.setdefault(numbered[1].entry.channel, []).append(numbered)
        changes: dict[int, PresenceChange] = {}
        for found in await gather_limited(self._join_channel, [_ChannelJoins(*item) for item in channels.items()]):
            changes |= found
        return [changes[number] for number in range(len(joins))]

    async def _join_channel(self, work: _ChannelJoins) -> dict[int, PresenceChange]:
        changes: dict[int, PresenceChange] = {}
        for start in range(0, len(work.joins), MAX_EVENTS):
            part = work.joins[start : start + MAX_EVENTS]
            changes |= await self._change(work.channel, partial(self._add, joins=part))
        return changes

    def _add(
        self, document: MembersDocument, now: int, joins: Sequence[tuple[int, PresenceJoin]]
    ) -> tuple[Sequence[Publication] | None, dict[int, PresenceChange]]:
        events: list[Publication] = []
        changes: dict[int, PresenceChange] = {}
        for number, join in joins:
            effect = channel_members.add(document.users, join, now + self._ttl)
            outcome = self._outcome(document, effect, join.event)
            changes[number] = outcome.change
            events += outcome.events
        document.renewed = now
        return events, changes

    async def update(self, update: PresenceJoin) -> PresenceChange | None:
        """Replaces the user's info in the channel's document."""

        def show(document: MembersDocument, now: int) -> tuple[Sequence[Publication] | None, PresenceChange | None]:
            effect = channel_members.update(document.users, update)
            if effect is None:
                return None, None
            outcome = self._outcome(document, effect, update.event)
            return outcome.events, outcome.change

        return await self._change(update.entry.channel, show)

    async def leave(self, entry: PresenceEntry, event: Publication) -> PresenceChange:
        """Removes the connection from the channel's document."""

        def remove(document: MembersDocument, now: int) -> tuple[Sequence[Publication] | None, PresenceChange]:
            has_left = channel_members.remove(document.users, entry.user, [entry.connection])
            if has_left is None:
                return None, PresenceChange(False, len(document.users), False)
            outcome = self._outcome(document, channel_members.Effect(has_left, has_left), event)
            return outcome.events, outcome.change

        return await self._change(entry.channel, remove)

    async def leave_all(
        self, entries: Sequence[PresenceEntry], leave_event: LeaveEventFactory, *, only_expired: bool = False
    ) -> Sequence[PresenceChange]:
        """Removes all connections of a channel together."""
        channels: dict[ChannelKey, list[tuple[int, PresenceEntry]]] = {}
        for numbered in enumerate(entries):
            channels.setdefault(numbered[1].channel, []).append(numbered)

        async def leave(item: tuple[ChannelKey, list[tuple[int, PresenceEntry]]]) -> dict[int, PresenceChange]:
            changes: dict[int, PresenceChange] = {}
            for start in range(0, len(item[1]), MAX_EVENTS):
                part = item[1][start : start + MAX_EVENTS]
                work = partial(self._remove, entries=part, leave_event=leave_event, only_expired=only_expired)
                changes |= await self._change(item[0], work)
            return changes

        changes: dict[int, PresenceChange] = {}
        for found in await gather_limited(leave, channels.items()):
            changes |= found
        return [changes[number] for number in range(len(entries))]

    def _remove(
        self,
        document: MembersDocument,
        now: int,
        entries: Sequence[tuple[int, PresenceEntry]],
        leave_event: LeaveEventFactory,
        *,
        only_expired: bool,
    ) -> tuple[Sequence[Publication] | None, dict[int, PresenceChange]]:
        events: list[Publication] = []
        changes: dict[int, PresenceChange] = {}
        is_changed = False
        for number, (channel, user, connection) in entries:
            known = document.users.get(user, {}).get(connection)
            has_left: bool | None = None
            if known is not None and not (only_expired and known.expiry > now):
                has_left = channel_members.remove(document.users, user, [connection])
                is_changed = True
            effect = channel_members.Effect(bool(has_left), bool(has_left))
            outcome = self._outcome(document, effect, leave_event(channel, user))
            changes[number] = outcome.change
            events += outcome.events
        return events if is_changed else None, changes

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """Extends the entries in each channel's document; without entries it only checks that NATS answers."""
        if not entries:
            await self._documents.check()
        channels: dict[ChannelKey, list[PresenceEntry]] = {}
        for entry in entries:
            channels.setdefault(entry.channel, []).append(entry)

        async def renew(item: tuple[ChannelKey, list[PresenceEntry]]) -> Sequence[PresenceEntry]:
            return await self._change(item[0], partial(self._renew, entries=item[1]))

        return [entry for missing in await gather_limited(renew, channels.items()) for entry in missing]

    def _renew(
        self, document: MembersDocument, now: int, entries: Sequence[PresenceEntry]
    ) -> tuple[Sequence[Publication] | None, Sequence[PresenceEntry]]:
        missing = []
        for entry in entries:
            connections = document.users.get(entry.user, {})
            known = connections.get(entry.connection)
            if known is None:
                missing.append(entry)
            else:
                connections[entry.connection] = MemberConnection(now + self._ttl, known.info)
        if len(missing) == len(entries):
            return None, missing
        document.renewed = now
        return (), missing

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """Reads all documents, and changes those that have expired entries."""
        subjects = {self._documents.subjects.members(channel): channel for channel in channels}
        if not subjects:
            return ()
        found = await self._documents.read_all(list(subjects))
        now = milliseconds(self._clock)
        expired = [subjects[subject] for subject, data in found.items() if _has_expired(self._decode(data, now), now)]

        async def remove(channel: ChannelKey) -> Sequence[tuple[ChannelKey, PresenceChange]]:
            work = partial(self._remove_expired, channel=channel, leave_event=leave_event)
            return await self._change(channel, work)

        return [change for changes in await gather_limited(remove, expired) for change in changes]

    def _remove_expired(
        self, document: MembersDocument, now: int, channel: ChannelKey, leave_event: LeaveEventFactory
    ) -> tuple[Sequence[Publication] | None, Sequence[tuple[ChannelKey, PresenceChange]]]:
        if not _has_expired(document, now):
            return None, ()
        events: list[Publication] = []
        changes: list[tuple[ChannelKey, PresenceChange]] = []
        for user, connections in list(document.users.items()):
            if len(changes) == MAX_EVENTS:
                break
            expired = [connection for connection, one in connections.items() if one.expiry <= now]
            if channel_members.remove(document.users, user, expired):
                effect = channel_members.Effect(changed=True, is_news=True)
                outcome = self._outcome(document, effect, leave_event(channel, user))
                changes.append((channel, outcome.change))
                events += outcome.events
        return events, changes

    async def expired(self, channels: Sequence[ChannelKey]) -> Sequence[ExpiredEntry]:
        """Reads the documents of all channels. A replica may answer with slightly older ones."""
        subjects = {self._documents.subjects.members(channel): channel for channel in channels}
        if not subjects:
            return ()
        found = await self._documents.read_all(list(subjects))
        now = milliseconds(self._clock)
        return [
            ExpiredEntry(
                PresenceEntry(subjects[subject], user, connection),
                channel_members.shown_info(connections),
                all(one.expiry <= now for one in connections.values()),
            )
            for subject, data in found.items()
            for user, connections in self._decode(data, now).users.items()
            for connection, known in connections.items()
            if known.expiry <= now
        ]

    async def find_all(self, users: Sequence[tuple[ChannelKey, str]]) -> Sequence[FoundUser | None]:
        """Reads the document of each channel."""
        channels = list(dict.fromkeys(channel for channel, _ in users))
        documents = dict(zip(channels, await gather_limited(self._read, channels), strict=True))
        return [_found(user, *documents[channel]) for channel, user in users]

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """Reads the channel's document."""
        document, now = await self._read(channel)
        names = heapq.nsmallest(limit, document.users)
        return len(document.users), [_member(name, document.users[name], now) for name in names]

    async def count(self, channel: ChannelKey) -> int:
        """Reads the channel's document."""
        return len((await self._read(channel))[0].users)

    async def counts(self, channels: Sequence[ChannelKey]) -> Sequence[int]:
        """Reads the documents of all channels. A replica may answer with slightly older ones."""
        subjects = [self._documents.subjects.members(channel) for channel in channels]
        if not subjects:
            return ()
        found = await self._documents.read_all(list(dict.fromkeys(subjects)))
        now = milliseconds(self._clock)
        return [len(self._decode(found.get(subject), now).users) for subject in subjects]

    async def _read(self, channel: ChannelKey) -> tuple[MembersDocument, int]:
        data = await self._documents.read(self._documents.subjects.members(channel))
        now = milliseconds(self._clock)
        return self._decode(data, now), now

    async def _change(
        self, channel: ChannelKey, work: Callable[[MembersDocument, int], tuple[Sequence[Publication] | None, T]]
    ) -> T:
        """Changes the document of a channel. `work` returns the events, or None to leave it unchanged, and the result."""

        def update(data: bytes | None) -> tuple[DocumentUpdate, T]:
            now = milliseconds(self._clock)
            document = self._decode(data, now)
            events, result = work(document, now)
            if events is None:
                return DocumentUpdate(None), result
            return DocumentUpdate(msgspec.msgpack.encode(document), self._document_ttl / 1000, events), result

        return await self._documents.change(self._documents.subjects.members(channel), update)

    def _decode(self, data: bytes | None, now: int) -> MembersDocument:
        document = MembersDocument() if data is None else msgspec.msgpack.decode(data, type=MembersDocument)
        return document if now < document.renewed + self._document_ttl else MembersDocument()

    def _outcome(self, document: MembersDocument, effect: channel_members.Effect, event: Publication) -> _Outcome:
        users = len(document.users)
        is_published = effect.is_news and users <= self._max_announced_users
        return _Outcome(PresenceChange(effect.changed, users, is_published), [event] if is_published else [])


def _found(user: str, document: MembersDocument, now: int) -> FoundUser | None:
    connections = document.users.get(user)
    if connections is None:
        return None
    alive = frozenset(name for name, one in connections.items() if now < one.expiry)
    return FoundUser(alive, frozenset(connections) - alive, channel_members.shown_info(connections))


def _has_expired(document: MembersDocument, now: int) -> bool:
    return any(one.expiry <= now for connections in document.users.values() for one in connections.values())


def _member(user: str, connections: dict[str, MemberConnection], now: int) -> Member:
    # A user without a live connection is a member until the leave event, with one connection.
    alive = sum(now < one.expiry for one in connections.values())
    return Member(user, max(1, alive), channel_members.shown_info(connections))
