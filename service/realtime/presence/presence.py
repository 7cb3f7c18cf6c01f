"""Presence: the users of a channel. Each is announced once. Leaves are debounced, so a reload or a deploy announces nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec
import structlog
from msgspec import Raw

from service.aio.timers import PeriodicTask
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.presence import PresenceEntry, PresenceStore, is_updated
from service.errors import ServiceError
from service.protocol.messages import PresenceMember, PresenceView
from service.realtime.presence.counts import CountPublisher
from service.realtime.presence.events import JOINED, LEFT, PresenceEvents
from service.realtime.presence.lease import Lease
from service.realtime.presence.reconciler import PresenceReconciler
from service.realtime.presence.tracker import PresenceTracker, sliced
from service.realtime.runtime import Runtime

_log = structlog.get_logger("presence")


class Presence:
    """Adds and removes this node's connections in the presence of channels, and shows presence to its subscribers.

    Entries expire in a shared store. Each check renews this node's entries if that is due. It also removes expired entries from
    the channels that this node subscribes to, so that the users of a killed node are reported as gone.
    """

    def __init__(
        self,
        store: PresenceStore,
        broker: Broker,
        runtime: Runtime,
        subscribed: Callable[[], Iterable[ChannelKey]],
        deliver: Callable[[Event], None],
        *,
        debounce: float,
        max_members: int,
        ttl: float,
        is_shared: bool,
    ) -> None:
        """`runtime` uses the store clock. `subscribed` returns the channels with presence that the broker delivers to this node.
        `deliver` sends an event to their subscribers. `debounce` and `ttl` are seconds. A channel with more than `max_members`
        users is shown as a count. `is_shared`: other nodes use the store, too, so its entries expire."""
        self._store = store
        self._subscribed = subscribed
        self._max_members = max_members
        self._lease = Lease(runtime.clock, ttl)
        self._events = events = PresenceEvents(runtime.clock)
        self._counts = CountPublisher(store, broker, events, runtime)
        self._tracker = PresenceTracker(
            store, events, self._lease, runtime, self._counts.record_change, debounce=debounce, is_shared=is_shared
        )
        self._reconciler = PresenceReconciler(store, events, deliver, max_members=max_members)
        self._checks = PeriodicTask(
            runtime.clock, runtime.tasks, "presence check", self._check, interval=self._lease.check_interval
        )
        self._outage = runtime.outages.log(
            _log, "presence_renewal_failed", "presence_renewal_recovered", runtime.clock.monotonic
        )

    def start(self) -> None:
        """Starts the checks of this node's entries and channels."""
        self._lease.start()
        self._checks.start()

    def close(self) -> None:
        """Cancels the timers. Entries in the store expire."""
        self._checks.close()
        self._tracker.close()
        self._counts.close()

    def drain(self) -> None:
        """From now on, entries of connections that leave stay until they expire. By then, most users have reconnected."""
        self._tracker.drain()

    async def join(
        self, channel: ChannelKey, user: str, connection: str, info: bytes | None, *, is_updatable: bool = False
    ) -> None:
        """Adds a connection, and announces the user if it is its first. If this raises, the caller must call `leave`.

        `info`: that of the token. `is_updatable`: the contract lets clients set their users' info.
        """
        await self._tracker.join(PresenceEntry(channel, user, connection), info, is_updatable=is_updatable)

    async def replace_token(self, channel: ChannelKey, user: str, connection: str, info: bytes | None) -> None:
        """Changes the user's info if that of the connection's token has changed, and announces it.

        While the store is away, the change is postponed until its return.
        """
        await self._tracker.replace_token(PresenceEntry(channel, user, connection), info)

    async def update(self, channel: ChannelKey, user: str, connection: str, info: bytes) -> None:
        """Sets the user's info on behalf of a connection of this node (`updated_info`), and announces it.

        While the store is away, the change is postponed until its return.
        """
        await self._tracker.update(PresenceEntry(channel, user, connection), info)

    async def update_at_once(self, channel: ChannelKey, user: str, connection: str, info: bytes) -> bool:
        """Does the same for a connection of any node, but raises ServiceError if the store is away. False if it has left."""
        return await self._tracker.update_at_once(PresenceEntry(channel, user, connection), info)

    def leave(self, channel: ChannelKey, user: str, connection: str) -> None:
        """Removes a connection after the debounce, and announces the leave if it was the user's last."""
        self._tracker.leave(PresenceEntry(channel, user, connection))

    def leave_at_once(self, channel: ChannelKey, user: str, connection: str) -> None:
        """Does the same as `leave`, without the debounce: the client has had its time to return."""
        self._tracker.leave(PresenceEntry(channel, user, connection), is_debounced=False)

    def lapse(self, channel: ChannelKey, user: str, connection: str) -> None:
        """Removes a connection unless it joins again, at any node, before its entry in the store expires."""
        self._tracker.lapse(PresenceEntry(channel, user, connection))

    async def view(self, channel: ChannelKey) -> PresenceView:
        """Returns the users of the channel, or only their number if there are more than `max_members`."""
        count = await self._store.count(channel)
        if count > self._max_members:  # sorting thousands of names for each of thousands of joins is too slow
            return PresenceView(count=count)
        count, members = await self._store.members(channel, self._max_members)
        self._reconciler.record_members(channel, members)
        self._tracker.record_members(channel, members)
        return PresenceView(
            count=count,
            members=[
                PresenceMember(
                    user=member.user,
                    connections=member.connections,
                    info=Raw(member.info.rstrip()) if member.info is not None else msgspec.UNSET,
                    updated=is_updated(member.info),
                )
                for member in members
            ],
        )

    def observe(self, event: Event) -> None:
        """Records a presence event that goes out to this node's subscribers."""
        self._reconciler.observe(event)
        if event.type == JOINED:
            self._tracker.observe(event)

    async def counts(self, channels: Sequence[ChannelKey]) -> Sequence[int]:
        """Returns the number of users in each of the channels."""
        return await self._store.counts(channels)

    def interrupted(self, channels: Collection[ChannelKey] | None) -> None:
        """Schedules a check, because events may have been missed and the store may have lost entries. None means all channels.

        Interruptions cause at most one check in `lease.RETRY_INTERVAL` seconds.
        """
        self._reconciler.record_interruption(self._subscribed() if channels is None else channels)
        self._lease.doubt()
        self._checks.run_within(self._lease.soonest_check_in)

    async def _check(self) -> float:
        try:
            if self._lease.is_renewal_due:
                await self._tracker.renew()
            if self._lease.is_stable:
                self._tracker.retry_overdue_leaves()
                await self._reconciler.reconcile(set(self._subscribed()))
            if self._lease.has_expired_elsewhere:
                await self._remove_expired()
            self._outage.recovered(entries=len(self._tracker))
        except ServiceError as error:
            self._lease.doubt()
            self._outage.failed(code=error.code.code, entries=len(self._tracker))
        return self._lease.next_check_in

    async def _remove_expired(self) -> None:
        for channels in sliced(list(self._subscribed())):
            for channel, change in await self._store.remove_expired(channels, self._events.left):
                self._counts.record_change(LEFT, channel, change)
            self._lease.record_answer()
