"""Keeps the positions of empty channels that this node is subscribed to (docs/store-keys.md)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

from service.core.channel import ChannelKey
from service.errors import ServiceError

T = TypeVar("T")

MAX_BATCH = 200
"""Channels in one call of `renew`."""


class EmptyChannels(Generic[T]):
    """The subscribed channels in which nothing was ever published, each with a value for `renew`.

    `renew` extends the lives of some positions, and returns those channels that are still empty.
    """

    __slots__ = ("_channels", "_renew", "_ttl")

    def __init__(
        self, ttl: float, renew: Callable[[Mapping[ChannelKey, T]], Awaitable[Mapping[ChannelKey, T]]]
    ) -> None:
        self._ttl = ttl
        self._renew = renew
        self._channels: dict[ChannelKey, T] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: ChannelKey, known: T) -> None:
        """Renews the position of a channel from now on."""
        self._channels[channel] = known

    def discard(self, channel: ChannelKey) -> None:
        """Stops renewing it. Harmless if the channel is unknown."""
        self._channels.pop(channel, None)

    def clear(self) -> None:
        """Stops renewing all channels."""
        self._channels.clear()

    async def run(self) -> None:
        """Renews three times or more within the TTL, until it is cancelled."""
        while True:
            # Jitter, so that nodes that started together do not all write at the same moment.
            await asyncio.sleep(self._ttl / 3 * random.uniform(0.7, 1.0))  # noqa: S311  # guards nothing
            with suppress(ServiceError):  # the next round comes within the TTL
                await self.renew()

    async def renew(self) -> None:
        """Renews all positions once. Raises ServiceError."""
        waiting = iter(list(self._channels))
        while batch := list(islice(waiting, MAX_BATCH)):
            known = {channel: self._channels[channel] for channel in batch if channel in self._channels}
            still_empty = await self._renew(known)
            for channel in known.keys() & self._channels.keys():
                if channel in still_empty:
                    self._channels[channel] = still_empty[channel]
                else:
                    del self._channels[channel]
