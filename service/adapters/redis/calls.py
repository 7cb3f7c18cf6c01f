"""Calls of the broker: each is tried again after whatever may pass, within a deadline, and only so many wait at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import structlog

from service.adapters.redis.config import Names, RedisConfig, milliseconds
from service.adapters.redis.connections.error_replies import MEANINGS, meaning, word_of
from service.adapters.redis.connections.link import Argument, Link, LinkLost, ReplyError, pack
from service.adapters.redis.connections.shard import Shard
from service.adapters.redis.connections.shard_map import Shards, unavailable
from service.adapters.redis.connections.topology import said
from service.adapters.redis.lua.scripts import Script
from service.aio.eager_start import ensure_task
from service.telemetry.metrics import Metrics
from service.telemetry.outage import LimitedLog

WAIT_SECONDS = 0.1
"""Before a server that is loading, failing over or resharding is asked again."""
MEASURED = 8
"""One call in so many is timed: the histogram costs a tenth of a publish."""

_log = structlog.get_logger("redis")


class _Trial(NamedTuple):
    """A call that is tried again."""

    key: str
    command: Callable[[Link], bytes]
    script: Script | None
    repeats: bool
    deadline: float


class Calls:
    """Every method raises ServiceError(BROKER_UNAVAILABLE) if Redis can't, after `config.timeout` seconds at most."""

    def __init__(self, config: RedisConfig, metrics: Metrics, shards: Shards) -> None:
        self._config = config
        self._metrics = metrics
        self._shards = shards
        self.position_ttl = milliseconds(max(config.position_ttl, config.idempotency_window))
        """For how long a position is kept: as long as it takes to forget an event, or longer."""
        # Epochs must differ; nothing is guarded by them.
        self.seed = f"{random.getrandbits(32):08x} {milliseconds(config.empty_ttl)}"
        """What epochs begin with that are begun for this node; channel.lua."""
        self._count = 0
        # Readiness does not turn for refusals, as subscribers can be served.
        self._log_refusal = LimitedLog(_log, "Redis refuses calls", level="error")
        self.waiting = 0
        """Those that have not returned."""

    def run(self, script: Script, names: Names, *arguments: Argument) -> Awaitable[Any]:
        """Runs a script on a channel, and again if its connection breaks; channel.lua tells what every script gets."""

        def command(link: Link) -> bytes:
            keys, always = names.keys, (link.generation, self.seed, self.position_ttl)
            return pack(("EVALSHA", script.sha, len(keys), *keys, *always, *arguments))

        return self.call(names.tag, command, script)

    def plain(self, key: str, *command: Argument) -> Awaitable[Any]:
        """Sends a command where a key lives, and again if its connection breaks."""
        return self.call(key, lambda _: pack(command))

    async def call(
        self, key: str, command: Callable[[Link], bytes], script: Script | None = None, *, repeats: bool = True
    ) -> Any:
        """Sends what `command` packs for a link. `repeats`: it may be sent again after it may have been carried out."""
        shard = self._shards.of(key)
        if self.waiting >= self._config.queue:
            self._metrics.limits.limit_hits.labels(limit="broker_queue").inc()
            raise unavailable(f"{self.waiting} calls wait for Redis already (broker.queue)")
        self.waiting += 1
        try:
            if (link := shard.commands.link) is None:
                began, error = asyncio.get_running_loop().time(), None
            else:
                # What goes well at once needs no deadline of its own: links look after theirs.
                future = link.send(command(link))
                began = link.turn
                try:
                    reply = await future
                except (LinkLost, ReplyError) as problem:
                    error = problem
                except GeneratorExit:  # it was begun by hand, and is let go: nobody will look at what becomes of it
                    future.cancel()
                    raise
                else:
                    self._count += 1
                    if self._count % MEASURED == 0:
                        self._metrics.broker.broker_seconds.observe(asyncio.get_running_loop().time() - began)
                    return reply
            trial = _Trial(key, command, script, repeats, began + self._config.timeout)
            return await self._persist(trial, shard, link, error)
        except TimeoutError as late:
            raise unavailable("Redis did not reply in time") from late
        finally:
            self.waiting -= 1

    async def _persist(self, trial: _Trial, shard: Shard, link: Link | None, error: Exception | None) -> Any:
        """Tries again after whatever may pass, until the deadline."""
        await ensure_task()
        try:
            async with asyncio.timeout_at(trial.deadline):
                while True:
                    if isinstance(error, LinkLost) and not trial.repeats:
                        raise unavailable("the connection to Redis was lost; the event may be lost too") from error
                    if link is not None and isinstance(error, ReplyError):
                        await self._mend(shard, link, trial.script, error)
                    shard = self._shards.of(trial.key)
                    try:
                        link = shard.commands.link or await shard.commands.up(trial.deadline)
                    except LinkLost:  # another server has its channels now
                        link = error = None
                    else:
                        try:
                            return await link.send(trial.command(link))
                        except (LinkLost, ReplyError) as another:
                            error = another
                    await asyncio.sleep(0)  # whatever goes wrong at once, others get their turn
        except TimeoutError as late:
            reason = shard.commands.reason or (said(error) if error else "") or "it does not reply in time"
            raise unavailable(f"Redis: {reason}") from late

    async def _mend(self, shard: Shard, link: Link, script: Script | None, error: ReplyError) -> None:
        """Does what an error asks for before the next try. Raises ServiceError for one that another try will not change."""
        word = word_of(error)
        if word == "NOSCRIPT" and script is not None:
            await _load(shard, link, script)
        elif word == "STALE":
            shard.told(link, str(error).partition(" ")[2])
        elif word == "MOVED" and self._shards.is_cluster:
            self._shards.redirected(str(error), shard)
        elif word == "READONLY":
            link.abort()  # it has become a replica; whoever is master now is asked for
            await asyncio.sleep(WAIT_SECONDS)
        elif word in ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "ASK", "BUSY"):
            await asyncio.sleep(WAIT_SECONDS)
        else:
            self._metrics.broker.broker_errors.labels(reply=word if word in MEANINGS else "other").inc()
            self._log_refusal(word, reply=word, meaning=meaning(error) or "unexpected")
            raise unavailable(f"Redis refuses: {meaning(error) or word}") from error


async def _load(shard: Shard, link: Link, script: Script) -> None:
    """Makes a script known that the server has forgotten, once for all who miss it."""
    if (loading := shard.loading.get(script.sha)) is not None:
        await asyncio.shield(loading)
        return
    loading = shard.loading[script.sha] = asyncio.get_running_loop().create_future()
    try:
        await link.call("SCRIPT", "LOAD", script.text)
    except LinkLost:
        return
    except ReplyError as error:
        raise unavailable(f"Redis refuses to load a script: {meaning(error) or word_of(error)}") from error
    finally:
        del shard.loading[script.sha]
        loading.set_result(None)
