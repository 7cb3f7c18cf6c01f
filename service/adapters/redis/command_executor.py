"""Executes the broker's commands. Each is retried after transient errors until a deadline, and the number of waiting
commands is limited."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import structlog

from service.adapters.redis.config import RedisConfig, milliseconds
from service.adapters.redis.connections.errors import MEANINGS, error_code, explain_failure, explain_reply
from service.adapters.redis.connections.link import Argument, Link, LinkLost, ReplyError, pack
from service.adapters.redis.connections.shard import Shard
from service.adapters.redis.connections.shard_map import ShardMap
from service.adapters.redis.keys import ChannelKeys
from service.adapters.redis.lua.scripts import Script
from service.adapters.store.calls import CallLimit
from service.adapters.store.errors import unavailable
from service.aio.eager_start import ensure_task
from service.telemetry.metrics import Metrics
from service.telemetry.outage import LimitedLog

TRANSIENT_DELAY = 0.1
"""Seconds before a server that is loading, failing over or resharding is asked again."""
SAMPLING = 8
"""One call in this many is timed. Observing the histogram costs a tenth of a publish."""

_log = structlog.get_logger("redis")


class _Retry(NamedTuple):
    """A call that is retried."""

    key: str
    encode: Callable[[Link], bytes]
    script: Script | None
    is_repeatable: bool
    deadline: float


class CommandExecutor:
    """Sends commands to the shards of their keys.

    Every method raises ServiceError(BROKER_UNAVAILABLE) if Redis fails, after `config.call_timeout` seconds at most.
    """

    def __init__(self, config: RedisConfig, metrics: Metrics, shards: ShardMap) -> None:
        self._timeout = config.call_timeout
        self._metrics = metrics
        self._shards = shards
        self._limit = CallLimit("Redis", config.max_calls, metrics)
        self._count = 0
        self.position_ttl = milliseconds(max(config.position_ttl, config.idempotency_window))
        """How long a position is kept: at least as long as the idempotency window."""
        # random, not secrets: epochs must differ, but they guard nothing.
        self.epoch_seed = f"{random.getrandbits(32):08x} {milliseconds(config.empty_ttl)}"
        """The beginning of epochs that this node begins; an argument of channel.lua."""
        # Refusals do not change readiness: subscribers can still be served.
        self._log_refusal = LimitedLog(_log, "redis_call_refused", level="error")

    @property
    def pending(self) -> int:
        """Calls that have not returned."""
        return self._limit.pending

    def run_script(self, script: Script, keys: ChannelKeys, *arguments: Argument) -> Awaitable[Any]:
        """Runs a script on a channel, with the arguments of channel.lua first."""

        def encode(link: Link) -> bytes:
            shared = (link.generation, self.epoch_seed, self.position_ttl)
            names = (*keys.keys, keys.expiries, keys.removed)
            return pack(("EVALSHA", script.sha, len(names), *names, *shared, *arguments))

        return self.execute(keys.tag, encode, script)

    def run_command(self, key: str, *command: Argument) -> Awaitable[Any]:
        """Runs a command where a key lives."""
        return self.execute(key, lambda _: pack(command))

    async def execute(
        self, key: str, encode: Callable[[Link], bytes], script: Script | None = None, *, is_repeatable: bool = True
    ) -> Any:
        """Sends what `encode` returns for a link. `is_repeatable`: it may be sent again when the first reply was lost."""
        shard = self._shards.shard_for(key)
        self._limit.acquire()
        try:
            if (link := shard.commands.link) is None:
                began, error = asyncio.get_running_loop().time(), None
            else:
                # The first try needs no deadline of its own: links fail overdue commands.
                future = link.send(encode(link))
                began = link.sent_at
                try:
                    reply = await future
                except (LinkLost, ReplyError) as problem:
                    error = problem
                except GeneratorExit:  # started outside of a task and abandoned: nobody will retrieve the result
                    future.cancel()
                    raise
                else:
                    self._count += 1
                    if self._count % SAMPLING == 0:
                        self._metrics.broker.broker_seconds.observe(asyncio.get_running_loop().time() - began)
                    return reply
            return await self._retry(
                _Retry(key, encode, script, is_repeatable, began + self._timeout), shard, link, error
            )
        except TimeoutError as late:
            raise unavailable("Redis did not reply in time") from late
        finally:
            self._limit.release()

    async def _retry(self, call: _Retry, shard: Shard, link: Link | None, error: Exception | None) -> Any:
        """Retries after transient errors, until the deadline."""
        await ensure_task()
        try:
            async with asyncio.timeout_at(call.deadline):
                while True:
                    if isinstance(error, LinkLost) and not call.is_repeatable:
                        raise unavailable("the connection to Redis was lost; the event may be lost too") from error
                    if link is not None and isinstance(error, ReplyError):
                        await self._handle(error, shard, link, call.script)
                    shard = self._shards.shard_for(call.key)
                    try:
                        link = shard.commands.link or await shard.commands.wait_open(call.deadline)
                    except LinkLost:  # the shard was closed: another one has its channels now
                        link = error = None
                    else:
                        try:
                            return await link.send(call.encode(link))
                        except (LinkLost, ReplyError) as another:
                            error = another
                    await asyncio.sleep(0)  # lets other tasks run, even if every try fails at once
        except TimeoutError as late:
            reason = shard.commands.reason or (explain_failure(error) if error else "") or "it does not reply in time"
            raise unavailable(f"Redis: {reason}") from late

    async def _handle(self, error: ReplyError, shard: Shard, link: Link, script: Script | None) -> None:
        """Prepares the next try after an error. Raises ServiceError if a retry is useless."""
        code = error_code(error)
        if code == "NOSCRIPT" and script is not None:
            await shard.load(link, script)
        elif code == "STALE":
            shard.learn_generation(link, str(error).partition(" ")[2])
        elif code == "MOVED" and self._shards.is_cluster:
            self._shards.redirect(str(error), shard)
        elif code == "READONLY":
            link.abort()  # it has become a replica; reconnecting finds the master
            await asyncio.sleep(TRANSIENT_DELAY)
        elif code in ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "ASK", "BUSY"):
            await asyncio.sleep(TRANSIENT_DELAY)
        else:
            self._metrics.broker.broker_errors.labels(reply=code if code in MEANINGS else "other").inc()
            self._log_refusal(code, reply=code, meaning=explain_reply(error) or "unexpected")
            raise unavailable(f"Redis refuses: {explain_reply(error) or code}") from error
