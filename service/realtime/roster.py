"""The roster: every connection of this node, by id and by user."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from service.realtime.connection import Connection
from service.telemetry.metrics import Metrics


class Roster:
    """Who is connected here."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._by_id: dict[str, Connection] = {}
        self._by_user: dict[tuple[str, str], dict[str, Connection]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, connection: Connection) -> None:
        """Enters a connection."""
        identity = connection.session.identity
        self._by_id[connection.id] = connection
        self._by_user.setdefault((identity.tenant, identity.user), {})[connection.id] = connection
        self._metrics.connections.inc()
        self._empty.clear()

    def remove(self, connection: Connection) -> None:
        """Strikes it out."""
        if self._by_id.pop(connection.id, None) is None:
            return
        self._metrics.connections.dec()
        identity = connection.session.identity
        of_user = self._by_user.get((identity.tenant, identity.user), {})
        of_user.pop(connection.id, None)
        if not of_user:
            self._by_user.pop((identity.tenant, identity.user), None)
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
        return tuple(self._by_user.get((tenant, user), {}).values())

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._by_id.values()))
