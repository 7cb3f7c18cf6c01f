"""Asks Sentinels for the current master."""

from __future__ import annotations

import asyncio
from collections import Counter

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.connector import Connector
from service.adapters.redis.connections.errors import Endpoint, NoServerError, name_of
from service.aio.single_flight import SingleFlight

SILENT_GRACE = 0.05
"""Seconds that the query still waits for Sentinels that were silent the last time, once all others have answered."""


class SentinelDiscovery:
    """Finds the master that most Sentinels name. A Sentinel that was cut off may name an old master."""

    def __init__(self, config: RedisConfig, connector: Connector) -> None:
        self._config = config
        self._connector = connector
        self._silent: set[Endpoint] = set()
        """Sentinels that did not answer the last time."""
        self._query = SingleFlight("redis sentinel query", self._ask_all)

    async def master(self) -> Endpoint:
        """Returns the master. Raises NoServerError."""
        return await self._query.result()

    async def close(self) -> None:
        """Cancels a query that runs."""
        await self._query.close()

    async def _ask_all(self) -> Endpoint:
        """Asks all Sentinels at once, until a majority names one master or all have answered."""
        sentinels = self._config.address.hosts
        queries = {asyncio.ensure_future(self._ask(sentinel)): sentinel for sentinel in sentinels}
        silent = self._silent
        votes: Counter[Endpoint] = Counter()
        failures: list[NoServerError] = []
        waiting = set(queries)
        try:
            while waiting and not (votes and 2 * votes.most_common(1)[0][1] > len(sentinels)):
                only_silent_left = votes and all(queries[query] in silent for query in waiting)
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=SILENT_GRACE if only_silent_left else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                for query in done:
                    try:
                        votes[query.result()] += 1
                        silent.discard(queries[query])
                    except NoServerError as error:
                        failures.append(error)
                        silent.add(queries[query])
        finally:
            for query in queries:
                query.cancel()
            await asyncio.gather(*queries, return_exceptions=True)
        if not votes:
            reasons = "; ".join(dict.fromkeys(map(str, failures)))
            raise NoServerError(
                f"no Sentinel names a master of {self._config.address.master!r}: {reasons}",
                is_permanent=all(error.is_permanent for error in failures),
            )
        return votes.most_common(1)[0][0]

    async def _ask(self, sentinel: Endpoint) -> Endpoint:
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._config.address.master)
        answer = await self._connector.ask(sentinel, self._config.sentinel_login, *command)
        if answer is None:
            raise NoServerError(f"{name_of(sentinel)} knows no master of that name", is_permanent=True)
        host, port = answer
        return host.decode(), int(port)
