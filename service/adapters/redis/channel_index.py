"""An index for each tenant of the channels that can be listed. The cost of a listing depends on what it returns, not on
what once existed.

An entry has a TTL. A subscription's is `SUBSCRIPTION_TTL`, and nodes renew it while they are subscribed. A publish's is
that of the history or state. The node that finds an expired entry checks the channel, and then removes or renews the
entry. In a Cluster, an index may be on another shard than the channel, so scripts on channels do not write it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from service.adapters.redis.command_executor import CommandExecutor
from service.adapters.redis.config import milliseconds
from service.adapters.redis.connections.link import Argument, pack
from service.adapters.redis.keys import Keys
from service.adapters.redis.lua.scripts import INDEX_SETTLE, INDEX_UPDATE, Script
from service.aio.eager_start import ensure_task
from service.core.channel import ChannelKey
from service.errors import ServiceError
from service.telemetry.metrics import Metrics

SUBSCRIPTION_TTL = 60.0
"""Seconds for which an entry of a subscription is valid."""
RENEWAL_INTERVAL = SUBSCRIPTION_TTL / 3
CHECK_INTERVAL = 1.0
"""Seconds between two checks of unsubscribed and expired channels."""
ADD_TIMEOUT = 1.0
CLAIM_TTL = 30.0
"""Seconds for which only the node that found an expired entry checks it."""
MAX_NAMES = 500
"""Names in one call."""
MAX_EXPIRED = 200
"""Expired entries that one call returns."""
MAX_WAITING_UPDATES, MAX_WAITING_CHECKS = 20_000, 10_000
"""Names that wait for the next check. Names above the limit are found again when they expire."""

_PRESENT, _UNSUBSCRIBED, _UNLISTED = "+", "-", "!"
"""What lua/index_update.lua does with a name."""

T = TypeVar("T")


class Listing(NamedTuple):
    """Whether a channel can be listed."""

    is_listed: bool
    valid_for: int
    """Milliseconds for which its history or state alone keeps it listed."""


class ChannelIndex:
    """Keeps the indexes of all tenants."""

    def __init__(
        self,
        executor: CommandExecutor,
        prefix: str,
        metrics: Metrics,
        *,
        check_channel: Callable[[ChannelKey], Awaitable[Listing]],
        subscribed: Callable[[], Collection[ChannelKey]],
    ) -> None:
        """`check_channel` reads whether a channel can be listed; `subscribed` returns this node's channels."""
        self._executor = executor
        self._keys = Keys(prefix)
        self._metrics = metrics
        self._check_channel = check_channel
        self._subscribed = subscribed
        self._updates: dict[ChannelKey, str] = {}
        """Channels to update, each with what to do."""
        self._expired: dict[ChannelKey, bytes] = {}
        """Channels to check, each with the expiry that this node's claim has set."""
        self._backlogged: set[str] = set()
        """Tenants that may have more expired entries than one call returns."""
        self._renewed_at = 0.0

    async def add(self, channel: ChannelKey, seconds: float = SUBSCRIPTION_TTL) -> None:
        """Adds or renews an entry. Never raises: the index may live on another shard, which must not fail the channel.

        A channel that could not be added is listed after the next renewal.
        """
        if not channel.tenant:
            return
        self._updates.pop(channel, None)
        await ensure_task()
        try:
            async with asyncio.timeout(ADD_TIMEOUT):
                await self._update(channel.tenant, [_PRESENT + channel.name], seconds)
        except (ServiceError, TimeoutError):
            self._metrics.broker.broker_errors.labels(reply="index").inc()

    def unsubscribed(self, channel: ChannelKey) -> None:
        """Checks the entry soon, as this node is no longer subscribed."""
        self._schedule(_UNSUBSCRIBED, channel)

    def unlisted(self, channel: ChannelKey) -> None:
        """Checks the entry soon, as a listing found nothing in the channel."""
        self._schedule(_UNLISTED, channel)

    async def page(self, tenant: str, low: str, limit: int) -> Sequence[str]:
        """Returns names in order, from `low` on, which has the format of ZRANGEBYLEX. Raises ServiceError."""
        names, _ = self._keys_of(tenant)
        found = await self._executor.run_command(names, "ZRANGEBYLEX", names, low, "+", "LIMIT", 0, limit)
        return [name.decode() for name in found]

    async def run(self) -> None:
        """Renews this node's entries and checks expired ones, until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            try:
                await self.check()
            except ServiceError:  # the entries expire again, and a later check finds them
                self._metrics.broker.broker_errors.labels(reply="index").inc()

    async def check(self) -> None:
        """Writes the updates, renews entries that are due, and checks expired ones. Raises ServiceError."""
        now = asyncio.get_running_loop().time()
        updates, self._updates = self._updates, {}
        if now - self._renewed_at >= RENEWAL_INTERVAL:
            self._renewed_at = now
            present = (channel for channel in self._subscribed() if channel.tenant)
            updates = {**updates, **dict.fromkeys(present, _PRESENT)}
        for tenant, names in _by_tenant(updates).items():
            for batch in _batches(names, MAX_NAMES):
                await self._update(tenant, batch, SUBSCRIPTION_TTL)
        while self._expired or self._backlogged:
            while self._expired:
                expired = dict(islice(self._expired.items(), MAX_EXPIRED))
                for channel in expired:
                    del self._expired[channel]
                await self._settle(expired)
            if self._backlogged:
                await self._update(self._backlogged.pop(), (), SUBSCRIPTION_TTL)

    async def _update(self, tenant: str, updates: Sequence[Argument], seconds: float) -> None:
        arguments = (int(seconds * 1000), milliseconds(CLAIM_TTL), MAX_EXPIRED, *updates)
        claim, *names = await self._run(INDEX_UPDATE, tenant, arguments)
        if len(names) == MAX_EXPIRED:
            self._backlogged.add(tenant)
        for name in names:
            if len(self._expired) < MAX_WAITING_CHECKS:
                self._expired[ChannelKey(tenant, name.decode())] = claim

    async def _settle(self, expired: Mapping[ChannelKey, bytes]) -> None:
        """Removes or renews expired entries."""
        listings = await asyncio.gather(*map(self._check_channel, expired), return_exceptions=True)
        results: dict[tuple[str, bytes], list[Argument]] = {}
        for (channel, claim), listing in zip(expired.items(), listings, strict=True):
            if isinstance(listing, ServiceError):
                continue  # the channel's shard is unavailable
            if isinstance(listing, BaseException):
                raise listing
            valid_for = max(listing.valid_for, milliseconds(SUBSCRIPTION_TTL)) if listing.is_listed else 0
            results.setdefault((channel.tenant, claim), []).extend((channel.name, valid_for))
        for (tenant, claim), arguments in results.items():
            await self._run(INDEX_SETTLE, tenant, (claim, *arguments))

    async def _run(self, script: Script, tenant: str, arguments: Sequence[Argument]) -> Any:
        keys = self._keys_of(tenant)
        message = pack(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        return await self._executor.execute(keys[0], lambda _: message, script)

    def _keys_of(self, tenant: str) -> tuple[str, str]:
        return self._keys.tagged("channels", tenant), self._keys.tagged("channels-due", tenant)

    def _schedule(self, update: str, channel: ChannelKey) -> None:
        if channel.tenant and len(self._updates) < MAX_WAITING_UPDATES:
            self._updates[channel] = update


def _by_tenant(updates: Mapping[ChannelKey, str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for channel, update in updates.items():
        found.setdefault(channel.tenant, []).append(update + channel.name)
    return found


def _batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    left = iter(items)
    return iter(lambda: list(islice(left, size)), [])
