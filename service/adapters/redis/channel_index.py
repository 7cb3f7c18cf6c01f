"""Which channels of a tenant may be listed: an index at Redis that costs what is listed, not what once was.

An entry holds for as long as the node that made it could tell: HELD seconds for a subscription, which nodes repeat while they
have it, and the ttl of the history or state for a publish. Who finds an entry that holds no more looks at the channel, and drops
it or gives it a new term. The index lives in a slot of its own, so none of this is in the scripts on channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from service.adapters.redis.calls import Calls
from service.adapters.redis.config import Keys
from service.adapters.redis.connections.link import Argument, pack
from service.adapters.redis.lua.scripts import INDEX, INDEX_SETTLE, Script
from service.aio.eager_start import ensure_task
from service.core.channel import ChannelKey
from service.errors import ServiceError
from service.telemetry.metrics import Metrics

HELD = 60.0
"""Seconds that a subscription is noted for."""
RENEWAL = HELD / 3
"""Seconds between two notes of what this node is subscribed to."""
TICK = 1.0
"""Seconds between two looks at what has been left and what is due."""
ENTER_SECONDS = 1.0
"""For entering a channel."""
CLAIM = 30.0
"""Seconds for which the node that finds an entry due is the only one that looks at it."""
PORTION = 500
"""Names in one call."""
DUE = 200
"""Entries found due by one call."""
MAX_LEFT, MAX_DUE = 20_000, 10_000
"""Names that wait for the next look; further ones are found again by somebody when they are due."""

T = TypeVar("T")


class ChannelIndex:
    """The index of every tenant. `look(channel)`: whether it is to be listed, and milliseconds for which that holds.
    `subscribed()`: what this node is subscribed to."""

    def __init__(
        self,
        calls: Calls,
        prefix: str,
        metrics: Metrics,
        *,
        look: Callable[[ChannelKey], Awaitable[tuple[bool, int]]],
        subscribed: Callable[[], Collection[ChannelKey]],
    ) -> None:
        self._calls = calls
        self._keys = Keys(prefix)
        self._metrics = metrics
        self._look = look
        self._subscribed = subscribed
        self._left: dict[ChannelKey, str] = {}
        """With what to say of each: index.lua."""
        self._due: dict[ChannelKey, bytes] = {}
        """With the due that this node has claimed it by."""
        self._crowded: set[str] = set()
        """Tenants of whom more may be due than one call finds."""
        self._renewed = 0.0

    async def enter(self, channel: ChannelKey, seconds: float = HELD) -> None:
        """Notes a channel for so long. If it cannot be done the channel works, and is listed when it is noted next: the index's
        shard may be another one than the channel's, and must not take it down with it."""
        if not channel.tenant:
            return
        self._left.pop(channel, None)
        await ensure_task()
        try:
            async with asyncio.timeout(ENTER_SECONDS):
                await self._note(channel.tenant, [f"+{channel.name}"], seconds)
        except (ServiceError, TimeoutError):
            self._metrics.broker.broker_errors.labels(reply="index").inc()

    def leave(self, channel: ChannelKey) -> None:
        """This node is not subscribed any more: the entry is looked at soon."""
        self._say("-", channel)

    def doubt(self, channel: ChannelKey) -> None:
        """The channel was found not to be worth listing."""
        self._say("!", channel)

    async def page(self, tenant: str, low: str, most: int) -> Sequence[str]:
        """Names in order from `low` on, as ZRANGEBYLEX takes it. Raises ServiceError."""
        names, _ = self._of(tenant)
        found = await self._calls.plain(names, "ZRANGEBYLEX", names, low, "+", "LIMIT", 0, most)
        return [name.decode() for name in found]

    async def keep(self) -> None:
        """Repeats what this node is subscribed to, and looks at what is due; runs until it is cancelled."""
        while True:
            await asyncio.sleep(TICK)
            try:
                await self._tend()
            except ServiceError:  # whatever was under way comes again when it is due
                self._metrics.broker.broker_errors.labels(reply="index").inc()

    async def _tend(self) -> None:
        now = asyncio.get_running_loop().time()
        words, self._left = self._left, {}
        if now - self._renewed >= RENEWAL:
            self._renewed = now
            words = {**words, **dict.fromkeys((one for one in self._subscribed() if one.tenant), "+")}
        for tenant, names in _by_tenant(words).items():
            for part in _portions(names, PORTION):
                await self._note(tenant, part, HELD)
        while self._due or self._crowded:
            while self._due:
                some = dict(islice(self._due.items(), DUE))
                for channel in some:
                    del self._due[channel]
                await self._settle(some)
            if self._crowded:
                await self._note(self._crowded.pop(), (), HELD)

    async def _note(self, tenant: str, words: Sequence[Argument], seconds: float) -> None:
        arguments = (int(seconds * 1000), int(CLAIM * 1000), DUE, *words)
        due, *names = await self._run(INDEX, tenant, arguments)
        if len(names) == DUE:
            self._crowded.add(tenant)
        for name in names:
            if len(self._due) < MAX_DUE:
                self._due[ChannelKey(tenant, name.decode())] = due

    async def _settle(self, due: Mapping[ChannelKey, bytes]) -> None:
        looks = await asyncio.gather(*map(self._look, due), return_exceptions=True)
        found: dict[tuple[str, bytes], list[Argument]] = {}
        for (channel, claimed), look in zip(due.items(), looks, strict=True):
            if isinstance(look, ServiceError):
                continue  # its shard is away
            if isinstance(look, BaseException):
                raise look
            listed, holds = look
            found.setdefault((channel.tenant, claimed), []).extend(
                (channel.name, max(holds, int(HELD * 1000)) if listed else 0)
            )
        for (tenant, claimed), words in found.items():
            await self._run(INDEX_SETTLE, tenant, (claimed, *words))

    async def _run(self, script: Script, tenant: str, arguments: Sequence[Argument]) -> Any:
        keys = self._of(tenant)
        message = pack(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        return await self._calls.call(keys[0], lambda _: message, script)

    def _of(self, tenant: str) -> tuple[str, str]:
        return self._keys.tagged("channels", tenant), self._keys.tagged("channels-due", tenant)

    def _say(self, word: str, channel: ChannelKey) -> None:
        if channel.tenant and len(self._left) < MAX_LEFT:
            self._left[channel] = word


def _by_tenant(words: Mapping[ChannelKey, str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for channel, word in words.items():
        found.setdefault(channel.tenant, []).append(word + channel.name)
    return found


def _portions(items: Iterable[T], size: int) -> Iterable[list[T]]:
    left = iter(items)
    return iter(lambda: list(islice(left, size)), [])
