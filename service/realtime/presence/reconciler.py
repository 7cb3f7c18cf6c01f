"""Corrects the presence that this node's subscribers see, after an interruption.

Presence events are in no stream, so a missed one cannot be read later. Instead, this node keeps the users that its subscribers
were shown. It compares them with the store, and sends the differences to its subscribers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from service.core.channel import ChannelKey
from service.core.event import Event, Publication, accepted_event
from service.core.presence import Member, PresenceEntry, PresenceStore
from service.realtime.presence.events import JOINED, LEFT, PresenceEvents, shown_info


class PresenceReconciler:
    """Compares channels with the store after an interruption."""

    def __init__(
        self,
        store: PresenceStore,
        events: PresenceEvents,
        deliver: Callable[[Event], None],
        *,
        max_members: int,
    ) -> None:
        """`deliver` sends an event to this node's subscribers. Channels with more users than `max_members` are not compared: the
        next change in them publishes the number of users."""
        self._store = store
        self._events = events
        self._deliver = deliver
        self._max_members = max_members
        self._known: dict[ChannelKey, dict[str, int]] = {}
        """The users that subscribers were shown, each with the hash of the shown info."""
        self._interrupted: set[ChannelKey] = set()
        """Channels in which an event may have been missed."""
        self._comparing: tuple[ChannelKey, set[str]] | None = None
        """The channel that is being compared, and the users in events that arrived meanwhile."""

    def observe(self, event: Event) -> None:
        """Records a presence event that goes out to subscribers."""
        user = event.key
        if user is None or event.type not in (JOINED, LEFT):
            return
        known = self._known.setdefault(event.channel, {})
        if event.type == JOINED:
            known[user] = hash(shown_info(event))
        else:
            known.pop(user, None)
        if self._comparing is not None and self._comparing[0] == event.channel:
            self._comparing[1].add(user)

    def record_members(self, channel: ChannelKey, members: Iterable[Member]) -> None:
        """Records the users that a subscriber was shown."""
        self._known.setdefault(channel, {}).update((member.user, hash(member.info)) for member in members)

    def record_interruption(self, channels: Iterable[ChannelKey]) -> None:
        """Marks channels in which an event may have been missed."""
        self._interrupted.update(channels)

    async def reconcile(self, subscribed: Collection[ChannelKey]) -> None:
        """Compares each interrupted channel that is still subscribed. Raises ServiceError; then call it again."""
        self._known = {channel: users for channel, users in self._known.items() if channel in subscribed}
        for channel in tuple(self._interrupted):
            if channel in self._known:
                await self._compare(channel)
            self._interrupted.discard(channel)

    async def _compare(self, channel: ChannelKey) -> None:
        before = dict(self._known[channel])
        self._comparing = (channel, set())
        try:
            if await self._store.count(channel) > self._max_members:
                return
            _, members = await self._store.members(channel, self._max_members)
            observed = self._comparing[1]
        finally:
            self._comparing = None
        present = {member.user: member.info for member in members}
        for user in before.keys() - present.keys() - observed:
            self._deliver_here(self._events.left(channel, user))
        for user in present.keys() - observed:
            if before.get(user) != hash(present[user]):
                join = self._events.join(PresenceEntry(channel, user, ""), present[user])
                self._deliver_here(join.event)

    def _deliver_here(self, publication: Publication) -> None:
        event = accepted_event(publication)
        self.observe(event)
        self._deliver(event)
