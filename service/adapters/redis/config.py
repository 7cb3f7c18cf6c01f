"""What the Redis adapters are told, and how they name their keys."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from service.adapters.redis.address import Address
from service.core.channel import ChannelKey


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """See the settings of the same names (docs/settings.md)."""

    address: Address
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_user: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    """None: plain TCP."""
    prefix: str = "tidewire"
    timeout: float = 5.0
    queue: int = 10_000
    ping: float = 1.0
    silence: float = 3.0
    position_ttl: float = 604_800.0
    idempotency_window: float = 300.0


class Keys:
    """Names at Redis. Everything of a channel has the same hash tag, so a Cluster keeps it on one shard and a script may
    touch it all. Neither tenants nor channel names can hold a brace or, for tenants, a colon."""

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def channel(self, channel: ChannelKey, part: str) -> str:
        """A part of a channel: `prefix:{tenant:name}:part`."""
        return f"{self._prefix}:{{{channel.tenant}:{channel.name}}}:{part}"

    def tagged(self, kind: str, tag: str) -> str:
        """Something that is no channel's: `prefix:kind:{tag}`."""
        return f"{self._prefix}:{kind}:{{{tag}}}"
