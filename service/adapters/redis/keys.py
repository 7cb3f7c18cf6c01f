"""The names of keys and Pub/Sub channels at Redis (docs/store-keys.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from service.core.channel import ChannelKey


class Keys:
    """Names keys. All keys of a channel share a hash tag, so a Cluster keeps them on one shard and a script may use all.

    Tenants and channel names hold no brace, and tenants no colon, so different channels never share a key.
    """

    __slots__ = ("_events", "_prefix")

    def __init__(self, prefix: str, database: int = 0) -> None:
        self._prefix = prefix
        # Pub/Sub ignores databases: without the number, services on two of them would get each other's events.
        self._events = f"events:{database}" if database else "events"

    def of_channel(self, channel: ChannelKey, part: str) -> str:
        """Returns the key of a part of a channel: `prefix:{tenant:name}:part`."""
        return f"{self._prefix}:{{{channel.tenant}:{channel.name}}}:{part}"

    def events(self, channel: ChannelKey) -> str:
        """Returns the Pub/Sub channel of a channel's events."""
        return self.of_channel(channel, self._events)

    def tagged(self, kind: str, tag: str) -> str:
        """Returns a key that belongs to no channel: `prefix:kind:{tag}`."""
        return f"{self._prefix}:{kind}:{{{tag}}}"


class ChannelKeys(NamedTuple):
    """All names of one channel."""

    tag: str
    """One of the keys, to find the slot."""
    keys: tuple[str, str, str, str]
    """meta, stream, state, order: the keys of every script on a channel (lua/channel.lua)."""
    expiries: str
    """The key of the expiries of values (lua/values.lua): the fifth key of every script on a channel that has one."""
    removed: str
    """The key of the tombstones (lua/removed.lua): the sixth of every script but lua/publish.lua."""
    removed_values: str
    """The key of the removals of values: the sixth key of lua/publish.lua for latest events."""
    result_prefix: str
    """The beginning of the keys of publish results."""
    events: bytes
    """The Pub/Sub channel."""


def channel_keys(prefix: str, database: int) -> Callable[[ChannelKey], ChannelKeys]:
    """Returns a function that names the keys of a channel, with a cache."""
    keys = Keys(prefix, database)

    @lru_cache(maxsize=20_000)
    def names(channel: ChannelKey) -> ChannelKeys:
        meta, *others = (keys.of_channel(channel, part) for part in ("meta", "stream", "state", "order"))
        stream, state, order = others
        return ChannelKeys(
            meta,
            (meta, stream, state, order),
            keys.of_channel(channel, "expiries"),
            keys.of_channel(channel, "removed"),
            keys.of_channel(channel, "removed-values"),
            keys.of_channel(channel, "id:"),
            keys.events(channel).encode(),
        )

    return names
