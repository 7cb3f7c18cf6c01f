"""Presence: who is in a channel, told once per user, with leaves debounced so that a reload or a deploy flaps nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import Raw

from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.clock import Timer, milliseconds
from service.core.event import Delivery, Event, Publication
from service.core.presence import PresenceChange, PresenceEntry, PresenceJoin, PresenceStore
from service.errors import ServiceError
from service.protocol.messages import PresenceMember, PresenceView
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime

JOINED, LEFT, COUNT = "presence.joined", "presence.left", "presence.count"

COUNT_INTERVAL = 1.0
"""Seconds between two counts of one channel, at least."""
RETRY = 1.0
"""Seconds between two tries while the store is away."""
SLICE = 2_000
"""Entries or channels looked after in one call of the store."""

_log = structlog.get_logger("presence")
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Stay:
    """One entry of this node, from before it is made until the store has confirmed that it is gone."""

    info: bytes | None
    entered: bool = False
    """Whether the store has confirmed it. If not it may be there all the same, so it is left too, and never renewed."""
    leaving: Timer | None = None
    """Runs during the debounce."""
    overdue: bool = False
    """Whether it should have left and the store was away."""


class Presence:
    """Joins and leaves of this node's connections.

    A leave reaches the store only after the debounce: until then the user counts as present everywhere, so coming back
    on any node is no join, and the late leave of the old connection is not the last one.

    In a store that nodes share entries expire after `ttl` seconds. This node renews its own at a third of that, enters again
    what a store has lost, and sweeps the channels that it carries at a sixth of it, so that the users of a node that was
    killed are told as gone. `carried` gives those channels.

    What is told of presence is in no stream. So after an interruption this node compares who was told to be there with who
    is, and tells its own subscribers of the difference (`deliver`).
    """

    def __init__(
        self,
        store: PresenceStore,
        broker: Broker,
        runtime: Runtime,
        carried: Callable[[], Iterable[ChannelKey]],
        deliver: Callable[[Event], None],
        *,
        debounce: float,
        most_members: int,
        ttl: float,
    ) -> None:
        self._store = store
        self._broker = broker
        self._runtime = runtime
        self._carried = carried
        self._deliver = deliver
        self._debounce = debounce
        self._most_members = most_members
        self._ttl = ttl
        self._stays: dict[PresenceEntry, _Stay] = {}
        self._going: dict[PresenceEntry, asyncio.Task[None]] = {}
        """Leaves that the store has been asked for and has not answered yet."""
        outages = runtime.outages
        self._renewals = outages.log(_log, "presence not renewed", "presence renewed again", runtime.clock.monotonic)
        self._counts = outages.log(_log, "presence not told", "presence told again", runtime.clock.monotonic)
        self._reentered = outages.limited(_log, "presence entered again", runtime.clock.monotonic, level="info")
        self._unshown: dict[PresenceEntry, None] = {}
        """Entries whose info the store has not taken yet."""
        self._known: dict[ChannelKey, dict[str, int]] = {}
        """Whom this node's subscribers believe to be in the channels that it carries, each with the hash of the info shown."""
        self._unheard: set[ChannelKey] = set()
        """Channels of which something may not have been heard."""
        self._comparing: tuple[ChannelKey, set[str]] | None = None
        """The channel that is being compared, and of whom was heard meanwhile."""
        self._counting: dict[ChannelKey, Timer] = {}
        self._upkeep: Timer | None = None
        self._closed = False
        self._draining = False
        self._renewed = -inf
        self._in_doubt = False
        """Whether the store may have lost entries, or be away."""
        self._heard = -inf
        """When the store was last known to be there."""
        self._returned = -inf
        """When it last came back, or turned out to have lost something."""

    def start(self) -> None:
        """Begins to look after this node's entries and channels."""
        self._renewed = self._heard = self._runtime.clock.monotonic()
        self._look_again(self._ttl / 6)

    async def join(self, channel: ChannelKey, user: str, connection: str, info: bytes | None) -> None:
        """Enters a connection; the channel is told if it is the user's first. When it raises, `leave` must follow."""
        entry = PresenceEntry(channel, user, connection)
        while going := self._going.get(entry):  # what is asked for later must not be overtaken
            await asyncio.wait([going])
        stay = self._stays.setdefault(entry, _Stay(info))
        if stay.leaving is not None:
            stay.leaving.cancel()
            stay.leaving = None
        stay.overdue = False
        change = await self._store.join(self._entrance(entry, info))
        stay.entered = True
        self._note(JOINED, channel, change)
        await self.update(channel, user, connection, info)  # of one that has come back the store has the old one

    async def update(self, channel: ChannelKey, user: str, connection: str, info: bytes | None) -> None:
        """Has the user be shown with another info, which the channel is told; harmless if it is the same or nobody is there.
        While the store is away it is put off."""
        entry = PresenceEntry(channel, user, connection)
        stay = self._stays.get(entry)
        if stay is None or stay.info == info:
            return
        stay.info = info
        self._unshown[entry] = None
        try:
            await self._show(entry)
        except ServiceError as error:
            self._in_doubt = True
            _log.debug("presence info put off", code=error.code.code)

    async def _show(self, entry: PresenceEntry) -> None:
        stay = self._stays.get(entry)
        if stay is not None and entry not in self._going:
            self._note(JOINED, entry.channel, await self._store.update(self._entrance(entry, stay.info)))
        self._unshown.pop(entry, None)

    def leave(self, channel: ChannelKey, user: str, connection: str) -> None:
        """Strikes a connection out after the debounce, and tells the channel if it was the user's last."""
        entry = PresenceEntry(channel, user, connection)
        stay = self._stays.get(entry)
        if stay is None or stay.leaving is not None or stay.overdue or entry in self._going:
            return
        if self._draining:
            del self._stays[entry]
            return
        stay.leaving = self._runtime.clock.call_later(self._debounce, partial(self._go, entry))

    def drain(self) -> None:
        """From here on those who leave are left to expire in the store: until then they have come back to another node."""
        self._draining = True

    def heard(self, event: Event) -> None:
        """Notes who is told to come or go."""
        user = event.key
        if user is None or event.type not in (JOINED, LEFT):
            return
        known = self._known.setdefault(event.channel, {})
        if event.type == JOINED:
            known[user] = hash(_told_info(event))
        else:
            known.pop(user, None)
        if self._comparing is not None and self._comparing[0] == event.channel:
            self._comparing[1].add(user)

    def interrupted(self, channels: Collection[ChannelKey] | None) -> None:
        """Something may not have been heard, and the store may have lost entries: looks at once, but not more than once in
        `RETRY` seconds."""
        self._unheard.update(self._carried() if channels is None else channels)
        self._in_doubt = True
        if self._upkeep is not None:  # else it is at work, and looks again right after
            self._upkeep.cancel()
            self._look_again(self._renewed + RETRY - self._runtime.clock.monotonic())

    async def view(self, channel: ChannelKey) -> PresenceView:
        """Who is in the channel; above the settable size only how many."""
        count = await self._store.count(channel)
        if count > self._most_members:  # sorting thousands of names for each of thousands who join would be for nothing
            return PresenceView(count=count)
        count, members = await self._store.members(channel, self._most_members)
        self._known.setdefault(channel, {}).update((member.user, hash(member.info)) for member in members)
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

    def close(self) -> None:
        """Lets the timers go; what is in the store expires there."""
        self._closed = True
        timers = [self._upkeep, *(stay.leaving for stay in self._stays.values()), *self._counting.values()]
        for timer in timers:
            if timer is not None:
                timer.cancel()
        self._stays.clear()
        self._unshown.clear()
        self._counting.clear()

    # --- leaving ---------------------------------------------------------------------------------------------------------

    def _go(self, entry: PresenceEntry) -> None:
        self._stays[entry].leaving = None
        self._going[entry] = self._runtime.tasks.spawn("presence leave", self._leave(entry))

    async def _leave(self, entry: PresenceEntry) -> None:
        try:
            if self._calm_for() < self._ttl / 3:
                # Other nodes may not have entered again yet what the store has lost: who is still there by one of
                # them would seem to leave.
                self._stays[entry].overdue = True
                return
            change = await self._store.leave(entry, self._farewell(entry.channel, entry.user))
            self._stays.pop(entry, None)
            self._note(LEFT, entry.channel, change)
        except ServiceError as error:
            _log.debug("presence leave put off", code=error.code.code)
            self._stays[entry].overdue = True
        finally:
            self._going.pop(entry, None)

    # --- upkeep ----------------------------------------------------------------------------------------------------------

    def _look_again(self, delay: float) -> None:
        if not self._closed:
            self._upkeep = self._runtime.clock.call_later(max(0.0, delay), self._begin_to_look)

    def _begin_to_look(self) -> None:
        self._upkeep = None
        self._runtime.tasks.spawn("presence upkeep", self._look_after())

    async def _look_after(self) -> None:
        try:
            if self._in_doubt or self._runtime.clock.monotonic() - self._renewed >= self._ttl / 3:
                self._in_doubt = False
                await self._renew()
            if self._calm_for() >= self._ttl / 3:
                for entry in [
                    entry for entry, stay in self._stays.items() if stay.overdue and entry not in self._going
                ]:
                    self._go(entry)
                await self._catch_up()
            if self._calm_for() >= self._ttl:
                await self._sweep()
            self._renewals.over(entries=len(self._stays))
        except ServiceError as error:
            self._in_doubt = True
            self._renewals.failed(code=error.code.code, entries=len(self._stays))
        finally:
            self._look_again(min(RETRY, self._ttl / 6) if self._in_doubt else self._ttl / 6)

    async def _renew(self) -> None:
        now = self._renewed = self._runtime.clock.monotonic()
        missing: list[PresenceEntry] = []
        for entries in _sliced([entry for entry, stay in self._stays.items() if stay.entered]) or [[]]:
            missing += await self._store.renew(entries)
        missing = [
            entry for entry in missing if entry in self._stays and entry not in self._going
        ]  # not those just left
        if missing or self._has_been_deaf():
            self._returned = self._runtime.clock.monotonic()
        self._heard = now
        if missing:
            self._runtime.metrics.subscriptions.presence_reentered.inc(len(missing))
            self._reentered(entries=len(missing))
            for entries in _sliced(missing):
                await self._enter_again(entries)
        for entry in tuple(self._unshown):
            await self._show(entry)

    async def _enter_again(self, missing: Sequence[PresenceEntry]) -> None:
        there = [
            (entry, self._stays[entry].info) for entry in missing if entry in self._stays and entry not in self._going
        ]
        changes = await self._store.join_all([self._entrance(entry, info) for entry, info in there])
        for (entry, _), change in zip(there, changes, strict=True):
            self._note(JOINED, entry.channel, change)

    async def _catch_up(self) -> None:
        carried = set(self._carried())
        self._known = {channel: users for channel, users in self._known.items() if channel in carried}
        for channel in tuple(self._unheard):
            if channel in self._known:
                await self._compare(channel)
            self._unheard.discard(channel)

    async def _compare(self, channel: ChannelKey) -> None:
        before = dict(self._known[channel])
        self._comparing = (channel, set())
        try:
            if await self._store.count(channel) > self._most_members:  # the next change tells how many they are
                return
            _, members = await self._store.members(channel, self._most_members)
            there = {member.user: member.info for member in members}
            heard = self._comparing[1]
        finally:
            self._comparing = None
        for user in before.keys() - there.keys() - heard:
            self._deliver(_unstored(self._farewell(channel, user)))
        for user in there.keys() - heard:
            if before.get(user) != hash(there[user]):
                self._deliver(_unstored(self._entrance(PresenceEntry(channel, user, ""), there[user]).event))

    async def _sweep(self) -> None:
        for channels in _sliced(list(self._carried())):
            if self._has_been_deaf():  # this process was stopped meanwhile, and its own entries may have expired
                return
            for channel, change in await self._store.remove_expired(channels, self._farewell):
                self._note(LEFT, channel, change)
            self._heard = self._runtime.clock.monotonic()

    def _has_been_deaf(self) -> bool:
        """Whether the last sign of the store is so old that others' entries may have expired too. Before that, what was
        renewed before the silence has a sixth of its time left at least."""
        return self._runtime.clock.monotonic() - self._heard > self._ttl / 2

    def _calm_for(self) -> float:
        """Seconds since the store came back. Right after that everybody's entries may have expired or be lost, and only a
        node that does not renew its own within their time is gone."""
        return self._runtime.clock.monotonic() - self._returned

    # --- telling ---------------------------------------------------------------------------------------------------------

    def _entrance(self, entry: PresenceEntry, info: bytes | None) -> PresenceJoin:
        data: dict[str, str | Raw] = {"user": entry.user}
        if info is not None:
            data["info"] = Raw(info)
        return PresenceJoin(entry, info, self._event(entry.channel, JOINED, data, entry.user))

    def _farewell(self, channel: ChannelKey, user: str) -> Publication:
        return self._event(channel, LEFT, {"user": user}, user)

    def _event(self, channel: ChannelKey, kind: str, data: object, user: str | None) -> Publication:
        return Publication(
            channel=channel,
            type=kind,
            id=new_id(),
            delivery=Delivery.EPHEMERAL,
            data=msgspec.json.encode(data),
            sender=user,
            at=milliseconds(self._runtime.clock),
            key=user or "",
        )

    def _note(self, kind: str, channel: ChannelKey, change: PresenceChange) -> None:
        if change.published:
            self._count_told(kind)
        elif change.changed:
            self._count_soon(channel)

    def _count_told(self, kind: str) -> None:
        self._runtime.metrics.subscriptions.presence_events.labels(kind=kind.partition(".")[2]).inc()

    def _count_soon(self, channel: ChannelKey) -> None:
        if channel not in self._counting:
            self._counting[channel] = self._runtime.clock.call_later(
                COUNT_INTERVAL, partial(self._spawn, "presence count", self._count, channel)
            )

    async def _count(self, channel: ChannelKey) -> None:
        self._counting.pop(channel, None)
        try:
            count = await self._store.count(channel)
            await self._broker.publish(self._event(channel, COUNT, {"count": count}, None))
        except ServiceError as error:  # the store is away: the next snapshot tells who is there
            self._counts.failed(kind=COUNT, code=error.code.code)
        else:
            self._counts.over(kind=COUNT)
            self._count_told(COUNT)

    def _spawn(self, name: str, work: Callable[[_T], Coroutine[Any, Any, None]], argument: _T) -> None:
        self._runtime.tasks.spawn(name, work(argument))


class _Told(msgspec.Struct):
    """What `presence.joined` shows of a user."""

    info: Raw = Raw(b"")


_decode_told = msgspec.json.Decoder(_Told).decode


def _told_info(event: Event) -> bytes | None:
    try:
        return bytes(_decode_told(event.data).info) or None
    except msgspec.DecodeError:  # what another version has told: it is looked up in the store when it counts
        return None


def _unstored(publication: Publication) -> Event:
    return Event(
        channel=publication.channel,
        type=publication.type,
        id=publication.id,
        delivery=publication.delivery,
        data=publication.data,
        sender=publication.sender,
        at=publication.at,
        key=publication.key,
    )


def _sliced(items: Sequence[_T]) -> list[list[_T]]:
    left = iter(items)
    return list(iter(lambda: list(islice(left, SLICE)), []))
