"""The roster: every connection of this node, by id and by user."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from service.realtime.connections.connection import Connection
from service.telemetry.metrics import Metrics


class ConnectionRegistry:
    """Who is connected here."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._by_id: dict[str, Connection] = {}
        self._by_user: dict[tuple[str, str], Connection | dict[str, Connection]] = {}
        """Most users have one connection: a dictionary of its own would cost each more than the connection's session."""
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, connection: Connection) -> None:
        """Enters a connection."""
        identity = connection.session.identity
        self._by_id[connection.id] = connection
        user = (identity.tenant, identity.user)
        there = self._by_user.setdefault(user, connection)
        if isinstance(there, dict):
            there[connection.id] = connection
        elif there is not connection:
            self._by_user[user] = {there.id: there, connection.id: connection}
        self._metrics.connections.connections.inc()
        self._empty.clear()

    def remove(self, connection: Connection) -> None:
        """Strikes it out."""
        if self._by_id.pop(connection.id, None) is None:
            return
        self._metrics.connections.connections.dec()
        identity = connection.session.identity
        user = (identity.tenant, identity.user)
        there = self._by_user.get(user)
        if isinstance(there, dict):
            there.pop(connection.id, None)
        if not there or there is connection:
            self._by_user.pop(user, None)
        if not self._by_id:
            self._empty.set()

    async def emptied(self) -> None:
        """Waits until nobody is connected."""
        await self._empty.wait()

    def get(self, id: str) -> Connection | None:
        """The connection with this id, if it is here."""
        return self._by_id.get(id)

    def of_user(self, tenant: str, user: str) -> tuple[Connection, ...]:
        """The user's connections here, oldest first."""
        there = self._by_user.get((tenant, user))
        if there is None:
            return ()
        return tuple(there.values()) if isinstance(there, dict) else (there,)

    def began(self, share: float) -> float | None:
        """When the connection began that this share of all is older than; None if nobody is connected."""
        there = tuple(self._by_id.values())  # in the order in which they came
        return there[min(len(there) - 1, int(share * len(there)))].since if there else None

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._by_id.values()))
