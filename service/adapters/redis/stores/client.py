"""Calls of Redis that are not on the way of a message: presence, tickets, caps. The broker has a connection of its own.

redis-py does the work: pools, Sentinel, Cluster. What it cannot see, a server that has stalled in the middle of an answer, is
why every call has a deadline here.
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
from service.adapters.redis.config import Keys, RedisConfig
from service.adapters.redis.connections.error_replies import MEANINGS, meaning, word_of
from service.adapters.redis.connections.topology import ASK_SECONDS, SHARE, Place, Servers
from service.adapters.redis.lua.scripts import Script
from service.aio.eager_start import ensure_task
from service.errors import ErrorCode, ServiceError

CONNECTIONS = 16
"""Connections to one server at most; further calls wait for one, within their deadline."""
BATCH = 100
"""Calls in one pipeline: a millisecond or so of Redis' time, so that nobody waits long behind it."""
RETRIES = 1
"""Tries more after a connection that broke, which is how a restart of Redis shows. Every call here may be repeated."""

Word = str | bytes | int


class Call(NamedTuple):
    """What one run of a script gets."""

    keys: Sequence[str]
    args: Sequence[Word]


class RedisClient:
    """Every method raises ServiceError(BROKER_UNAVAILABLE) if Redis can't, after `config.timeout` seconds at most."""

    def __init__(self, config: RedisConfig) -> None:
        self.keys = Keys(config.prefix, config.address.database)
        cluster = config.address.topology is Topology.CLUSTER
        self.publish = "SPUBLISH" if cluster else "PUBLISH"
        """The command by which a script tells the nodes of an event."""
        self._timeout = config.timeout
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._redis: Redis | RedisCluster
        self._discovery: _Discovery | None = None
        if cluster:
            self._redis = _cluster(config)
        elif config.address.topology is Topology.SENTINEL:
            self._discovery = _Discovery(config)
            self._redis = _sentinel(config, self._discovery)
        else:
            self._redis = _standalone(config)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Word]) -> Any:
        """Runs a script. All keys are of one hash tag."""
        async with self._call():
            try:
                return await self._redis.execute_command(*_evalsha(script, keys, args))
            except NoScriptError:  # Redis was restarted, or its scripts were flushed
                return await self._redis.execute_command(*_eval(script, keys, args))

    async def run_all(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Runs a script many times, in any order and not as of one moment; the results are in the order of the calls.

        The deadline is that of each batch. When one of the runs fails the others may have happened.
        """
        results: list[Any] = []
        left = iter(calls)
        while batch := list(islice(left, BATCH)):
            results += await self._run_batch(script, batch)
        return results

    async def command(self, *words: Word) -> Any:
        """Runs one plain command."""
        async with self._call():
            return await self._redis.execute_command(*words)

    async def check(self) -> None:
        """Returns if Redis answers."""
        await self.command("PING")

    async def close(self) -> None:
        """Lets the connections go."""
        await self._redis.aclose()
        if self._discovery is not None:
            await self._discovery.close()

    async def _run_batch(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        async with self._call():
            results = await self._pipe([_evalsha(script, *call) for call in calls])
            unknown = [index for index, result in enumerate(results) if isinstance(result, NoScriptError)]
            if unknown:
                # The whole text once, not with each call: of a pipeline the first makes the script known again. In a
                # Cluster every shard needs it.
                again = [_eval(script, *calls[index]) for index in unknown]
                for index, result in zip(unknown, await self._pipe(again), strict=True):
                    results[index] = result
            for result in results:
                if isinstance(result, Exception):
                    raise result
            return results

    async def _pipe(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        return results

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        await ensure_task()
        try:
            async with asyncio.timeout(self._timeout), self._places:
                yield
        except (ResponseError, AuthenticationError, BusyLoadingError) as error:
            raise _unavailable(f"Redis refused a call: {_reason(error)}") from error
        except (TimeoutError, RedisTimeoutError) as error:
            raise _unavailable(f"Redis did not answer within {self._timeout:g} s") from error
        except (RedisError, RedisClusterException, OSError, RuntimeError) as error:
            # RuntimeError is uvloop's word for writing to a connection that has just been reset.
            raise _unavailable(f"Redis cannot be reached ({type(error).__name__})") from error


def _unavailable(sentence: str) -> ServiceError:
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, sentence)


_WORDS: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    BusyLoadingError: "LOADING",
    AuthenticationError: "WRONGPASS",
}
"""Error replies whose first word redis-py turns into a type."""


def _reason(error: RedisError) -> str:
    """What was refused, and why. The rest of Redis' sentence may quote what was sent."""
    word = _WORDS.get(type(error)) or word_of(error)
    known = MEANINGS.get(word) if type(error) in _WORDS else meaning(error)
    return known or (word if word.isalpha() and word.isupper() else type(error).__name__)


def _evalsha(script: Script, keys: Sequence[str], args: Sequence[Word]) -> tuple[Word, ...]:
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def _eval(script: Script, keys: Sequence[str], args: Sequence[Word]) -> tuple[Word, ...]:
    return ("EVAL", script.text, len(keys), *keys, *args)


# --- connections ---------------------------------------------------------------------------------------------------------


def _options(config: RedisConfig, login: tuple[str, str] | None) -> dict[str, Any]:
    # The deadline of a call is `_call`'s. Given one of its own for the socket, redis-py writes under `asyncio.wait_for`, which
    # before Python 3.12 may swallow a cancellation: a call at a server that has stalled was seen to take three times its timeout.
    user, password = login or (None, None)
    return {
        "username": user,
        "password": password,
        "max_connections": CONNECTIONS,
        "socket_timeout": None,
        "socket_connect_timeout": config.timeout,
        "retry": Retry(NoBackoff(), RETRIES),
        "protocol": 2,
        "driver_info": None,  # not every ACL allows CLIENT SETINFO
        **config.redis_py(),
    }


def _standalone(config: RedisConfig) -> Redis:
    [(host, port)] = config.address.hosts
    return Redis(host=host, port=port, db=config.address.database, **_options(config, config.login))


class _Discovery:
    """Tells redis-py the master. Its own `Sentinel` asks one after another: one that says nothing takes the whole deadline."""

    def __init__(self, config: RedisConfig) -> None:
        self._servers = Servers(config)
        self._has_certificates = False

    async def discover_master(self, _: str) -> Place:
        """The master that most Sentinels name."""
        try:
            if not self._has_certificates:
                self._servers.read_certificates()
                self._has_certificates = True
            return await self._servers.place()
        except OSError as error:  # NoServer is one
            raise MasterNotFoundError(str(error)) from error

    async def close(self) -> None:
        """Lets go of what is under way."""
        await self._servers.close()


def _sentinel(config: RedisConfig, discovery: _Discovery) -> Redis:
    options = _options(config, config.login)
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]  # redis-py has no types there
        config.address.master, discovery, db=config.address.database, **options
    )
    return Redis.from_pool(pool)


def _cluster(config: RedisConfig) -> RedisCluster:
    nodes = [ClusterNode(host, port) for host, port in config.address.hosts]
    # redis-py asks one node after another: one that says nothing must not take the whole deadline.
    options = _options(config, config.login) | {"socket_connect_timeout": min(ASK_SECONDS, config.timeout / SHARE)}
    return RedisCluster(startup_nodes=nodes, **options)
