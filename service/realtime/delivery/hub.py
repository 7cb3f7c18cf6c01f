"""The hub: the rooms of this node, one for each channel with members."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from service.contract.model import ChannelSpec
from service.core.channel import ChannelKey
from service.realtime.connections.context import RoomContext
from service.realtime.delivery.room import Room


class Hub:
    """Finds the room of a channel.

    Example:
        room = hub.open(channel_key("acme", "room:1"), spec)
        room.add_member(connection)
        room.make_live(connection, subscription)
        room.push(frame, window=0.005)
    """

    def __init__(self, context: RoomContext) -> None:
        self._context = context
        self._metrics = context.metrics
        self._rooms: dict[ChannelKey, Room] = {}
        self.get: Callable[[ChannelKey], Room | None] = self._rooms.get
        """Returns the channel's room, if there is one. The dict's own method, because it runs for every event."""

    def open(self, key: ChannelKey, spec: ChannelSpec) -> Room:
        """Returns the channel's room. Creates it if there is none."""
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(key, spec, self._context)
            self._metrics.subscriptions.channels.inc()
        return room

    def drop(self, room: Room) -> None:
        """Removes an empty room."""
        room.discard()
        if self._rooms.pop(room.key, None) is not None:
            self._metrics.subscriptions.channels.dec()

    def keys(self) -> Collection[ChannelKey]:
        """Returns a view of the channels that have a room."""
        return self._rooms.keys()

    def rooms(self) -> Iterator[Room]:
        """Iterates over the current rooms, even if rooms are added or removed meanwhile."""
        return iter(tuple(self._rooms.values()))

    def close(self) -> None:
        """Removes every room."""
        for room in self.rooms():
            self.drop(room)
