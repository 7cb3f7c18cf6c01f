"""Calls of presence, tickets and quotas. The broker uses other connections.

redis-py does the work: pools, Sentinel, Cluster. It does not notice a server that stalls in the middle of an answer, so every
call has a timeout here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.adapters.redis.address import Topology
from service.adapters.redis.config import Login, RedisConfig
from service.adapters.redis.connections.connector import MAX_QUERY_TIMEOUT, QUERIES_PER_CALL, Connector
from service.adapters.redis.connections.errors import MEANINGS, Endpoint, error_code, explain_reply
from service.adapters.redis.connections.sentinel import SentinelDiscovery
from service.adapters.redis.keys import Keys
from service.adapters.redis.lua.scripts import Script
from service.adapters.store.calls import call_timeout, late
from service.adapters.store.errors import unavailable

MAX_CONNECTIONS = 16
"""Connections to one server; further calls wait for one, within their timeout."""
MAX_BATCH = 100
"""Calls in one pipeline: about a millisecond of Redis' time, so that other clients do not wait long."""
RETRIES = 1
"""Retries after a broken connection, for example when Redis restarts. Every call here may be repeated."""

Argument = str | bytes | int


class Call(NamedTuple):
    """The arguments of one run of a script."""

    keys: Sequence[str]
    args: Sequence[Argument]


class RedisClient:
    """Every method raises ServiceError(BROKER_UNAVAILABLE) if Redis fails, after `config.call_timeout` seconds at most."""

    def __init__(self, config: RedisConfig) -> None:
        self.keys = Keys(config.prefix, config.address.database)
        is_cluster = config.address.topology is Topology.CLUSTER
        self.publish_command = "SPUBLISH" if is_cluster else "PUBLISH"
        """The command by which a script publishes events."""
        self._timeout = config.call_timeout
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)
        self._redis: Redis | RedisCluster
        self._discovery: _Discovery | None = None
        if is_cluster:
            self._redis = _cluster(config)
        elif config.address.topology is Topology.SENTINEL:
            self._discovery = _Discovery(config)
            self._redis = _sentinel(config, self._discovery)
        else:
            self._redis = _standalone(config)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Runs a script. All keys have the same hash tag."""
        async with self._call():
            try:
                return await self._redis.execute_command(*_evalsha(script, keys, args))
            except NoScriptError:  # Redis has restarted, or its scripts were flushed
                return await self._redis.execute_command(*_eval(script, keys, args))

    async def run_all(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Runs a script many times, in any order and not atomically. Returns the results in the order of the calls.

        The timeout applies to each batch. When one run fails, the others may have happened.
        """
        results: list[Any] = []
        left = iter(calls)
        while batch := list(islice(left, MAX_BATCH)):
            results += await self._run_batch(script, batch)
        return results

    async def command(self, *arguments: Argument) -> Any:
        """Runs one command."""
        async with self._call():
            return await self._redis.execute_command(*arguments)

    async def command_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Runs many commands, in any order and not atomically. Returns the results in the order of the commands.

        The timeout applies to each batch.
        """
        results: list[Any] = []
        for start in range(0, len(commands), MAX_BATCH):
            async with self._call():
                results += _checked(await self._pipe(commands[start : start + MAX_BATCH]))
        return results

    async def check(self) -> None:
        """Returns if Redis answers."""
        await self.command("PING")

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()
        if self._discovery is not None:
            await self._discovery.close()

    async def _run_batch(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        async with self._call():
            results = await self._pipe([_evalsha(script, *call) for call in calls])
            unknown = [index for index, result in enumerate(results) if isinstance(result, NoScriptError)]
            if unknown:
                # EVAL sends the whole script, and the server stores it again. In a Cluster, every shard needs it.
                again = [_eval(script, *calls[index]) for index in unknown]
                for index, result in zip(unknown, await self._pipe(again), strict=True):
                    results[index] = result
            return _checked(results)

    async def _pipe(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        return results

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        try:
            async with call_timeout("Redis", self._timeout), self._connections:
                yield
        except (ResponseError, AuthenticationError, BusyLoadingError) as error:
            raise unavailable(f"Redis refused a call: {_reason(error)}") from error
        except RedisTimeoutError as error:
            raise late("Redis", self._timeout) from error
        except (RedisError, RedisClusterException, OSError, RuntimeError) as error:
            # uvloop raises RuntimeError for a write to a connection that has just been reset.
            raise unavailable(f"Redis cannot be reached ({type(error).__name__})") from error


def _checked(results: list[Any]) -> list[Any]:
    """Returns the results. Raises the first that is an error."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


_CODES: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    BusyLoadingError: "LOADING",
    AuthenticationError: "WRONGPASS",
}
"""Error replies whose code redis-py replaces by an exception type."""


def _reason(error: RedisError) -> str:
    """Says why Redis refused a call. The rest of its reply may quote what was sent."""
    code = _CODES.get(type(error)) or error_code(error)
    known = MEANINGS.get(code) if type(error) in _CODES else explain_reply(error)
    return known or (code if code.isalpha() and code.isupper() else type(error).__name__)


def _evalsha(script: Script, keys: Sequence[str], args: Sequence[Argument]) -> tuple[Argument, ...]:
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def _eval(script: Script, keys: Sequence[str], args: Sequence[Argument]) -> tuple[Argument, ...]:
    return ("EVAL", script.text, len(keys), *keys, *args)


# --- connections ---------------------------------------------------------------------------------------------------------


def _options(config: RedisConfig, login: Login) -> dict[str, Any]:
    # `_call` has the timeout. With a socket timeout, redis-py writes under `asyncio.wait_for`, which before Python 3.12 may
    # swallow a cancellation: a call to a stalled server was seen to take three times its timeout.
    user, password = login or (None, None)
    return {
        "username": user,
        "password": password,
        "max_connections": MAX_CONNECTIONS,
        "socket_timeout": None,
        "socket_connect_timeout": config.call_timeout,
        "retry": Retry(NoBackoff(), RETRIES),
        "protocol": 2,
        "driver_info": None,  # not every ACL allows CLIENT SETINFO
        **config.redis_py_tls(),
    }


def _standalone(config: RedisConfig) -> Redis:
    [(host, port)] = config.address.hosts
    return Redis(host=host, port=port, db=config.address.database, **_options(config, config.login))


class _Discovery:
    """Finds the master for redis-py, whose own `Sentinel` asks one after another, so that a silent one uses up the
    timeout."""

    def __init__(self, config: RedisConfig) -> None:
        self._connector = Connector(config)
        self._sentinels = SentinelDiscovery(config, self._connector)
        self._has_certificates = False

    async def discover_master(self, _: str) -> Endpoint:
        """Returns the master that most Sentinels name."""
        try:
            if not self._has_certificates:
                self._connector.load_certificates()
                self._has_certificates = True
            return await self._sentinels.master()
        except OSError as error:  # NoServerError is one
            raise MasterNotFoundError(str(error)) from error

    async def close(self) -> None:
        """Cancels a query that runs."""
        await self._sentinels.close()


def _sentinel(config: RedisConfig, discovery: _Discovery) -> Redis:
    options = _options(config, config.login)
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]  # redis-py has no types there
        config.address.master, discovery, db=config.address.database, **options
    )
    return Redis.from_pool(pool)


def _cluster(config: RedisConfig) -> RedisCluster:
    nodes = [ClusterNode(host, port) for host, port in config.address.hosts]
    # redis-py asks one node after another, so a silent one must not take the whole timeout.
    connect_timeout = min(MAX_QUERY_TIMEOUT, config.call_timeout / QUERIES_PER_CALL)
    options = _options(config, config.login) | {"socket_connect_timeout": connect_timeout}
    return RedisCluster(startup_nodes=nodes, **options)
