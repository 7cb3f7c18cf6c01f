"""Executes the broker's commands. Each is retried after transient errors until a deadline, and the number of waiting
commands is limited."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

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
from service.aio.pending import Pending
from service.aio.tasks import TaskSupervisor
from service.telemetry.metrics import Metrics
from service.telemetry.outage import LimitedLog

TRANSIENT_DELAY = 0.1
"""Seconds before a server that is loading, failing over or resharding is asked again."""
SAMPLING = 8
"""One call in this many is timed. Observing the histogram costs a tenth of a publish."""

_log = structlog.get_logger("redis")

T = TypeVar("T")
C = TypeVar("C", bound="Call[Any]")


class Call(Pending[T]):
    """A command at Redis, and its result. There is no task while it waits for the reply; only a retry has one.

    A subclass encodes the command, and calls `resolve` with what the reply means.
    """

    __slots__ = ("_executor", "_link", "_sent_at", "_shard", "_task", "key")

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        """Finds the server."""
        self._task: asyncio.Task[None] | None = None
        """Runs what the call needs after its first try: a retry, or further calls."""
        self._sent_at = 0.0
        """Loop time of the first try; 0 if there was none."""

    @property
    def script(self) -> Script | None:
        """The script that the command runs, to load it at a server that lacks it."""
        return None

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent again when the first reply was lost."""
        return True

    def encode(self, link: Link) -> bytes:
        """Returns the command for a link."""
        raise NotImplementedError

    def accept(self, reply: Any) -> None:
        """Gets the reply, and resolves the call, now or later. What it raises is the call's error."""
        raise NotImplementedError

    def start(self, executor: CommandExecutor, shard: Shard) -> None:
        """Sends the command. The caller has acquired a place under the limit of calls, which the end of the call releases."""
        self._executor, self._shard = executor, shard
        self._link = link = shard.commands.link
        try:
            if link is None:
                self._retry_after(None)
            else:
                # The first try needs no deadline of its own: links fail overdue commands.
                link.send_for(self, self.encode(link))
                self._sent_at = link.sent_at
        except BaseException:
            self.abandon()
            raise

    # --- called by the link -------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether nobody needs the reply any more."""
        return self.is_done

    def set_result(self, reply: Any) -> None:
        """Gets the reply to the first try."""
        self._executor.count_reply(self._sent_at)
        try:
            self.accept(reply)
        except Exception as error:
            self.fail(error)

    def set_exception(self, error: Exception) -> None:
        """Gets the error of the first try."""
        try:
            self._retry_after(error)
        except Exception as final:
            self.fail(final)

    # --- the end ------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Does not wait for the reply any more."""
        if not self.is_done:
            self._executor.limit.release()
            if self._task is not None:
                self._task.cancel()
        super().abandon()

    def _finish(self) -> None:
        self._executor.limit.release()
        super()._finish()

    # --- after an error -----------------------------------------------------------------------------------------------

    def _retry_after(self, error: Exception | None) -> None:
        """Sends the command again, in a task. Raises ServiceError if that is useless."""
        if isinstance(error, TimeoutError):
            raise unavailable("Redis did not reply in time") from error
        self._executor.check_repeatable(self, error)
        began = self._sent_at or asyncio.get_running_loop().time()
        self.continue_in_task(partial(self._executor.retry, self, self._shard, self._link, error, began))

    def continue_in_task(self, rest: Callable[[], Awaitable[None]]) -> None:
        """Runs the rest of the call in a task, which ends when nobody waits for the call any more."""
        self._task = self._executor.tasks.spawn("redis call", self._run(rest))
        self._task.add_done_callback(self._on_task_done)

    async def _run(self, rest: Callable[[], Awaitable[None]]) -> None:
        try:
            await rest()
        except Exception as error:
            self.fail(error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.fail(unavailable("the broker is closed"))


class _Command(Call[Any]):
    """A command whose result is its reply."""

    __slots__ = ("_encode", "_script")

    def __init__(self, key: str, encode: Callable[[Link], bytes], script: Script | None) -> None:
        super().__init__(key)
        self._encode, self._script = encode, script

    @property
    def script(self) -> Script | None:
        return self._script

    def encode(self, link: Link) -> bytes:
        return self._encode(link)

    def accept(self, reply: Any) -> None:
        self.resolve(reply)


class CommandExecutor:
    """Sends commands to the shards of their keys.

    Every call fails with ServiceError(BROKER_UNAVAILABLE) if Redis does, after `config.call_timeout` seconds at most.
    """

    def __init__(self, config: RedisConfig, metrics: Metrics, shards: ShardMap, tasks: TaskSupervisor) -> None:
        """`tasks` run the retries."""
        self.tasks = tasks
        self._timeout = config.call_timeout
        self._metrics = metrics
        self._shards = shards
        self.limit = CallLimit("Redis", config.max_calls, metrics)
        """Each call releases its place when it ends."""
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
        return self.limit.pending

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

    async def execute(self, key: str, encode: Callable[[Link], bytes], script: Script | None = None) -> Any:
        """Sends what `encode` returns for a link, again if the first reply was lost."""
        return await self.start(_Command(key, encode, script))

    def start(self, call: C) -> C:
        """Starts a call, and returns it. Raises ServiceError if it cannot start."""
        shard = self._shards.shard_for(call.key)
        self.limit.acquire()
        call.start(self, shard)
        return call

    # --- called by the calls ------------------------------------------------------------------------------------------

    def count_reply(self, sent_at: float) -> None:
        """Counts the reply to a first try, and measures one in a few. `sent_at`: loop time of the command."""
        self._count += 1
        if not self._count % SAMPLING:
            self._metrics.broker.broker_seconds.observe(asyncio.get_running_loop().time() - sent_at)

    def check_repeatable(self, call: Call[Any], error: Exception | None) -> None:
        """Raises ServiceError if a call must not be sent again, or cannot."""
        if isinstance(error, LinkLost) and not call.is_repeatable:
            raise unavailable("the connection to Redis was lost; the event may be lost too") from error
        self._shards.require_open()

    async def retry(
        self, call: Call[Any], shard: Shard, link: Link | None, error: Exception | None, began: float
    ) -> None:
        """Sends a call again after transient errors, until its deadline. `began`: loop time of the first try."""
        deadline = began + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    if link is not None and isinstance(error, ReplyError):
                        await self._handle(error, shard, link, call.script)
                    shard = self._shards.shard_for(call.key)
                    try:
                        link = shard.commands.link or await shard.commands.wait_open(deadline)
                    except LinkLost:  # the shard was closed: another one has its channels now
                        link = error = None
                    else:
                        try:
                            reply = await link.send(call.encode(link))
                        except (LinkLost, ReplyError) as another:
                            error = another
                            self.check_repeatable(call, error)
                        else:
                            call.accept(reply)
                            return
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
