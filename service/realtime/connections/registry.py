"""The connections of this node, by id and by user."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from service.realtime.connections.connection import Connection
from service.telemetry.metrics import Metrics


class ConnectionRegistry:
    """Finds connections. Iterates over them in the order in which they were added."""

    def __init__(self, metrics: Metrics) -> None:
        self._gauge = metrics.connections.connections
        self._by_id: dict[str, Connection] = {}
        self._by_user: dict[str, dict[str, Connection | dict[str, Connection]]] = {}
        """By tenant and user: one connection, or several by id. Most users have one, and a dictionary takes more memory than a
        session. A key of both names would take 64 bytes more a user."""
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def add(self, connection: Connection) -> None:
        """Adds a connection."""
        identity = connection.session.identity
        self._by_id[connection.id] = connection
        users = self._by_user.get(identity.tenant)
        if users is None:
            users = self._by_user[identity.tenant] = {}
        present = users.setdefault(identity.user, connection)
        if isinstance(present, dict):
            present[connection.id] = connection
        elif present is not connection:
            users[identity.user] = {present.id: present, connection.id: connection}
        self._gauge.value += 1.0
        if len(self._by_id) == 1:
            self._is_empty.clear()

    def remove(self, connection: Connection) -> None:
        """Removes a connection. Does nothing if it was removed before."""
        if self._by_id.get(connection.id) is not connection:
            return
        del self._by_id[connection.id]
        self._gauge.value -= 1.0
        identity = connection.session.identity
        users = self._by_user[identity.tenant]
        present = users.get(identity.user)
        if isinstance(present, dict):
            present.pop(connection.id, None)
        if not present or present is connection:
            users.pop(identity.user, None)
            if not users:
                del self._by_user[identity.tenant]
        if not self._by_id:
            self._is_empty.set()

    async def wait_empty(self) -> None:
        """Waits until there is no connection."""
        await self._is_empty.wait()

    def get(self, id: str) -> Connection | None:
        """Returns the connection with this id, if it is on this node."""
        return self._by_id.get(id)

    def of_user(self, tenant: str, user: str) -> tuple[Connection, ...]:
        """Returns the user's connections on this node, oldest first."""
        present = self._by_user.get(tenant, {}).get(user)
        if present is None:
            return ()
        return tuple(present.values()) if isinstance(present, dict) else (present,)

    def opened_at(self, quantile: float) -> float | None:
        """Returns the quantile of the times at which connections opened, in monotonic seconds; None without connections."""
        connections = tuple(self._by_id.values())
        if not connections:
            return None
        return connections[min(len(connections) - 1, int(quantile * len(connections)))].opened_at

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._by_id.values()))
