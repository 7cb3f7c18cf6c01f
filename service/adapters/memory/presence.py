"""The PresenceStore of a service that runs as one node."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from service.core.channel import ChannelKey
from service.core.presence import Member


class MemoryPresence:
    """Keeps the port's guarantee within one process. Bounded by what it is told: connections × subscriptions."""

    __slots__ = ("_channels",)

    def __init__(self) -> None:
        # channel → user → connection → info, the newest connection last
        self._channels: dict[ChannelKey, dict[str, dict[str, bytes | None]]] = {}

    async def join(self, channel: ChannelKey, user: str, connection: str, info: bytes | None) -> bool:
        """As the port says."""
        users = self._channels.setdefault(channel, {})
        connections = users.setdefault(user, {})
        first = not connections
        connections.setdefault(connection, info)
        return first

    async def leave(self, channel: ChannelKey, user: str, connection: str) -> bool:
        """As the port says."""
        users = self._channels.get(channel, {})
        connections = users.get(user, {})
        if connection not in connections:
            return False
        del connections[connection]
        if connections:
            return False
        del users[user]
        if not users:
            del self._channels[channel]
        return True

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """As the port says."""
        users = self._channels.get(channel, {})
        return len(users), [_member(user, users[user]) for user in heapq.nsmallest(limit, users)]

    async def count(self, channel: ChannelKey) -> int:
        """As the port says."""
        return len(self._channels.get(channel, {}))


def _member(user: str, connections: dict[str, bytes | None]) -> Member:
    return Member(user, len(connections), next(reversed(connections.values())))
