"""The slots of a Redis Cluster, and the masters that own them."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any, NamedTuple

from redis.crc import key_slot

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.connector import Connector
from service.adapters.redis.connections.errors import Endpoint, NoServerError, name_of
from service.aio.single_flight import SingleFlight

HEDGE_DELAY = 0.2
"""Seconds without an answer before a second server is asked, too."""
REDIRECT_TTL = 10.0
"""Seconds for which a redirection outweighs servers that do not know of it yet."""


class SlotRange(NamedTuple):
    """Slots from `first` to `last`, and their master."""

    first: int
    last: int
    master: Endpoint


class _Redirect(NamedTuple):
    """The master of one slot, from a MOVED reply."""

    master: Endpoint
    received: float
    """Loop time."""


class ClusterSlots:
    """Knows the master of every key from CLUSTER SLOTS and from redirections."""

    def __init__(self, config: RedisConfig, connector: Connector) -> None:
        self._config = config
        self._connector = connector
        self._ranges: list[SlotRange] = []
        self._redirects: dict[int, _Redirect] = {}
        self._last_source: Endpoint | None = None
        """The server that answered last; it is asked first the next time."""
        self._query = SingleFlight("redis cluster query", self._ask_servers)
        self.version = 0
        """Rises with every change of a slot's master."""

    @property
    def masters(self) -> frozenset[Endpoint]:
        """All known masters."""
        return frozenset(
            (*(slots.master for slots in self._ranges), *(redirect.master for redirect in self._redirects.values()))
        )

    def master_of(self, key: str) -> Endpoint:
        """Returns the master of a key. Raises NoServerError for a slot without one."""
        slot = key_slot(key.encode())
        if slot in self._redirects:
            return self._redirects[slot].master
        for slots in self._ranges:
            if slots.first <= slot <= slots.last:
                return slots.master
        raise NoServerError(f"no server of the Redis Cluster has slot {slot}")

    def first_slot_of(self, master: Endpoint) -> int | None:
        """Returns the first slot of a master; None if it has none."""
        return next((slots.first for slots in self._ranges if slots.master == master), None)

    def redirect(self, error: str, source: Endpoint | None) -> None:
        """Stores the redirection that a server has replied: `MOVED slot host:port`."""
        _, slot, target = error.split(" ")[:3]
        host, _, port = target.rpartition(":")
        master = (host or (source[0] if source else ""), int(port))
        known = self._redirects.get(int(slot))
        if known is None or known.master != master:
            self.version += 1
        self._redirects[int(slot)] = _Redirect(master, asyncio.get_running_loop().time())

    async def refresh(self) -> None:
        """Asks the servers for all slots. Raises NoServerError."""
        await self._query.result()

    async def close(self) -> None:
        """Cancels a query that runs."""
        await self._query.close()

    async def _ask_servers(self) -> None:
        """Asks one server after another, and a further one whenever the others are slow, until one answers."""
        servers = dict.fromkeys((*(slots.master for slots in self._ranges), *self._config.address.hosts))
        if self._last_source in servers:
            servers = {self._last_source: None, **servers}
        failures: list[NoServerError] = []
        unasked = list(servers)
        queries: dict[asyncio.Task[Any], Endpoint] = {}
        try:
            while unasked or queries:
                if unasked:
                    server = unasked.pop(0)
                    query = self._connector.ask(server, self._config.login, "CLUSTER", "SLOTS")
                    queries[asyncio.ensure_future(query)] = server
                done, _ = await asyncio.wait(
                    queries, timeout=HEDGE_DELAY if unasked else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    server = queries.pop(task)
                    try:
                        answer = task.result()
                    except NoServerError as error:
                        failures.append(error)
                        continue
                    if answer:
                        self._last_source = server
                        self._replace(sorted(_ranges(answer, server)))
                        return
                    failures.append(NoServerError(f"{name_of(server)} knows no slots"))
        finally:
            for task in queries:
                task.cancel()
            await asyncio.gather(*queries, return_exceptions=True)
        raise NoServerError(
            "; ".join(dict.fromkeys(map(str, failures))),
            is_permanent=bool(failures) and all(error.is_permanent for error in failures),
        )

    def _replace(self, ranges: list[SlotRange]) -> None:
        expired = asyncio.get_running_loop().time() - REDIRECT_TTL
        masters = {slots.master for slots in ranges}
        before = (self._ranges, self._redirects)
        self._ranges = ranges
        # A redirection may be newer than what this server knows.
        self._redirects = {
            slot: redirect
            for slot, redirect in self._redirects.items()
            if redirect.received > expired and redirect.master in masters
        }
        self.version += before != (self._ranges, self._redirects)


def _ranges(answer: list[Any], source: Endpoint) -> list[SlotRange]:
    """Reads the answer to CLUSTER SLOTS. A master without a host is the server that answered."""
    return [
        SlotRange(first, last, ((master[0] or b"").decode() or source[0], master[1]))
        for first, last, master, *_ in answer
    ]


@lru_cache(maxsize=1_000)
def tag_in_slot(slot: int) -> str:
    """Returns a hash tag whose keys are in a slot."""
    number = 0
    while key_slot(b"%d" % number) != slot:
        number += 1
    return str(number)
