"""Tracks the presence entries of this node's connections, from before the store adds one until the store has removed it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from service.core.channel import ChannelKey
from service.core.clock import Timer
from service.core.event import Event
from service.core.presence import Member, PresenceChange, PresenceEntry, PresenceStore
from service.errors import ServiceError
from service.realtime.presence.events import JOINED, LEFT, PresenceEvents, shown_info
from service.realtime.presence.lease import Lease
from service.realtime.runtime import Runtime

MAX_CALL_ITEMS = 2_000
"""Entries or channels in one call of the store."""

_log = structlog.get_logger("presence")
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _LocalEntry:
    """One entry of this node."""

    token_info: bytes | None
    """The info in the token of the connection."""
    info: bytes | None
    """The info with which the entry is added again: that of the user, as far as this node knows."""
    is_confirmed: bool = False
    """True if the store has confirmed the entry. The store may also have an unconfirmed entry: that is removed, never renewed."""
    leave_timer: Timer | None = None
    """The timer of the debounce after a leave."""
    is_leave_overdue: bool = False
    """True if the leave has failed because the store was away."""


class PresenceTracker:
    """Adds, renews and removes the entries of this node's connections.

    A leave reaches the store only after the debounce. Until then, every node counts the user as present. So a user who reconnects
    to any node is not announced again, and the late leave of the old connection is not the user's last.
    """

    def __init__(
        self,
        store: PresenceStore,
        events: PresenceEvents,
        lease: Lease,
        runtime: Runtime,
        on_change: Callable[[str, ChannelKey, PresenceChange], None],
        *,
        debounce: float,
        is_shared: bool = True,
    ) -> None:
        """`on_change` is called with the event's type, for each answer of the store. `debounce`: seconds."""
        self._store = store
        self._events = events
        self._lease = lease
        self._runtime = runtime
        self._on_change = on_change
        self._debounce = debounce
        self._is_shared = is_shared
        self._entries: dict[PresenceEntry, _LocalEntry] = {}
        self._updatable: dict[ChannelKey, dict[str, list[PresenceEntry]]] = {}
        """The entries of each user in the channels whose contract allows updates."""
        self._leaving: dict[PresenceEntry, asyncio.Task[None]] = {}
        """The tasks of leaves that the store has not answered yet."""
        self._stale_info: dict[PresenceEntry, None] = {}
        """Entries whose newest info the store does not have yet."""
        self._is_draining = False
        self._reentered = runtime.outages.limited(
            _log, "presence_entries_added_again", runtime.clock.monotonic, level="info"
        )

    def __len__(self) -> int:
        return len(self._entries)

    async def join(self, entry: PresenceEntry, token_info: bytes | None, *, is_updatable: bool) -> None:
        """Adds a connection. `is_updatable`: clients may set their users' info. If this raises, the caller must call `leave`."""
        while leaving := self._leaving.get(entry):  # a join must not overtake the leave before it
            await asyncio.wait([leaving])
        local = self._entries.get(entry)
        if local is None:
            local = self._entries[entry] = _LocalEntry(token_info, token_info)
            if is_updatable:
                self._updatable.setdefault(entry.channel, {}).setdefault(entry.user, []).append(entry)
        if local.leave_timer is not None:
            local.leave_timer.cancel()
            local.leave_timer = None
        local.is_leave_overdue = False
        change = await self._store.join(self._events.join(entry, local.info))
        local.is_confirmed = True
        self._on_change(JOINED, entry.channel, change)
        await self.replace_token(entry, token_info)  # the store still has the old info of a connection that joins again

    async def replace_token(self, entry: PresenceEntry, token_info: bytes | None) -> None:
        """Changes the user's info if that of the connection's token has changed. Postpones the change as `update` does."""
        local = self._entries.get(entry)
        if local is not None and local.token_info != token_info:
            local.token_info = token_info
            await self._change(entry, local, token_info)

    async def update(self, entry: PresenceEntry, info: bytes) -> None:
        """Sets the user's info on behalf of a client. While the store is away, the change is postponed until its return."""
        local = self._entries.get(entry)
        if local is not None:
            # Even if the info is the same here: another node may have changed it meanwhile.
            await self._change(entry, local, info)

    async def update_at_once(self, entry: PresenceEntry, info: bytes) -> bool:
        """Does the same for an entry of any node, but raises ServiceError if the store is away.

        Returns False if neither this node nor the store has the entry.
        """
        is_known = await self._send_info(entry, info)
        if entry in self._entries:
            self._record_info([entry], info)
            return True
        return is_known

    def observe(self, joined: Event) -> None:
        """Records the info in a `presence.joined` event. So every node that has a connection of the user can restore it."""
        users = self._updatable.get(joined.channel)
        if users is not None and joined.key in users:
            self._record_info(users[joined.key], shown_info(joined))

    def record_members(self, channel: ChannelKey, members: Iterable[Member]) -> None:
        """Records the info that the store has of the users of a channel."""
        users = self._updatable.get(channel)
        if users is not None:
            for member in members:
                if member.user in users:
                    self._record_info(users[member.user], member.info)

    def _record_info(self, entries: Iterable[PresenceEntry], info: bytes | None) -> None:
        for entry in entries:
            if entry not in self._stale_info:  # else this node's own change is newer
                self._entries[entry].info = info

    async def _change(self, entry: PresenceEntry, local: _LocalEntry, info: bytes | None) -> None:
        local.info = info
        self._stale_info.pop(entry, None)
        self._stale_info[entry] = (
            None  # the last: of two connections of a user, the one that has changed the info last counts
        )
        try:
            await self._update_store(entry)
        except ServiceError as error:
            self._lease.doubt()
            _log.debug("presence_update_postponed", code=error.code.code)

    def leave(self, entry: PresenceEntry, *, is_debounced: bool = True) -> None:
        """Removes a connection after the debounce. Does nothing if it has left already."""
        self._leave_after(entry, self._debounce if is_debounced else 0.0)

    def _leave_after(self, entry: PresenceEntry, seconds: float) -> None:
        local = self._entries.get(entry)
        if local is None or local.leave_timer is not None or local.is_leave_overdue or entry in self._leaving:
            return
        if self._is_draining:
            self._forget(entry)
            return
        local.leave_timer = self._runtime.clock.call_later(seconds, partial(self._start_leave, entry))

    def lapse(self, entry: PresenceEntry) -> None:
        """Leaves an entry to its expiry in the store: the connection may join again, at this node or another one.

        In a store of this process alone, entries do not expire. There it is removed after the same time.
        """
        if self._is_shared:
            local = self._entries.get(entry)
            if local is not None and local.leave_timer is not None:
                local.leave_timer.cancel()
            self._forget(entry)
            self._stale_info.pop(entry, None)
        else:
            self._leave_after(entry, self._lease.ttl)

    def drain(self) -> None:
        """From now on, entries that leave stay in the store until they expire. By then, most users have reconnected elsewhere."""
        self._is_draining = True

    def close(self) -> None:
        """Cancels the timers. Entries in the store expire."""
        for local in self._entries.values():
            if local.leave_timer is not None:
                local.leave_timer.cancel()
        self._entries.clear()
        self._updatable.clear()
        self._stale_info.clear()

    async def renew(self) -> None:
        """Renews all entries, adds lost ones again, and sends info that the store does not have yet."""
        started_at = self._lease.begin_renewal()
        missing: list[PresenceEntry] = []
        # The store is called even without entries: its answer shows that it is reachable.
        for part in sliced([entry for entry, local in self._entries.items() if local.is_confirmed]) or [[]]:
            missing += await self._store.renew(part)
        missing = [entry for entry in missing if self._is_present(entry)]  # without those that left meanwhile
        self._lease.end_renewal(started_at, has_lost_entries=bool(missing))
        if missing:
            self._runtime.metrics.subscriptions.presence_reentered.inc(len(missing))
            self._reentered(entries=len(missing))
            for part in sliced(missing):
                await self._add_again(part)
        for entry in tuple(self._stale_info):
            await self._update_store(entry)

    def retry_overdue_leaves(self) -> None:
        """Starts failed leaves again."""
        for entry in [
            entry for entry, local in self._entries.items() if local.is_leave_overdue and entry not in self._leaving
        ]:
            self._start_leave(entry)

    def _is_present(self, entry: PresenceEntry) -> bool:
        return entry in self._entries and entry not in self._leaving

    async def _update_store(self, entry: PresenceEntry) -> None:
        local = self._entries.get(entry)
        if local is not None and entry not in self._leaving:
            while True:
                info = local.info
                await self._send_info(entry, info)
                if (
                    local.info == info
                ):  # else it has changed meanwhile. Of two calls at a time, the older may arrive last
                    break
        self._stale_info.pop(entry, None)

    async def _send_info(self, entry: PresenceEntry, info: bytes | None) -> bool:
        """Returns False if the store has no such entry."""
        change = await self._store.update(self._events.join(entry, info))
        if change is not None:
            self._on_change(JOINED, entry.channel, change)
        return change is not None

    async def _add_again(self, missing: Sequence[PresenceEntry]) -> None:
        joins = [self._events.join(entry, self._entries[entry].info) for entry in missing if self._is_present(entry)]
        for join, change in zip(joins, await self._store.join_all(joins), strict=True):
            self._on_change(JOINED, join.entry.channel, change)

    def _forget(self, entry: PresenceEntry) -> None:
        self._entries.pop(entry, None)
        users = self._updatable.get(entry.channel, {})
        if entry in users.get(entry.user, ()):
            users[entry.user].remove(entry)
            if not users[entry.user]:
                del users[entry.user]
            if not users:
                del self._updatable[entry.channel]

    def _start_leave(self, entry: PresenceEntry) -> None:
        self._entries[entry].leave_timer = None
        self._leaving[entry] = self._runtime.tasks.spawn("presence leave", self._leave(entry))

    async def _leave(self, entry: PresenceEntry) -> None:
        try:
            if not self._lease.is_stable:
                # Other nodes may not have added lost entries again. A user who is still connected there would be
                # announced as gone.
                self._entries[entry].is_leave_overdue = True
                return
            change = await self._store.leave(entry, self._events.left(entry.channel, entry.user))
            self._forget(entry)
            self._on_change(LEFT, entry.channel, change)
        except ServiceError as error:
            _log.debug("presence_leave_postponed", code=error.code.code)
            self._entries[entry].is_leave_overdue = True
        finally:
            self._leaving.pop(entry, None)


def sliced(items: Sequence[_T]) -> list[list[_T]]:
    """Splits the items into lists of at most MAX_CALL_ITEMS."""
    return [list(items[start : start + MAX_CALL_ITEMS]) for start in range(0, len(items), MAX_CALL_ITEMS)]
