"""What the Redis adapters are told, and how they name their keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from service.adapters.redis.address import Address
from service.adapters.store.config import StoreConfig
from service.core.channel import ChannelKey


@dataclass(frozen=True, slots=True)
class RedisConfig(StoreConfig):
    """Where the servers are, and who we are to the Sentinels."""

    address: Address
    sentinel_user: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def is_tls(self) -> bool:
        """As the address says."""
        return self.address.tls

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password for the servers; None: there is nothing to log in with."""
        return _login(self.user, self.password)

    @property
    def sentinel_login(self) -> tuple[str, str] | None:
        """The same for the Sentinels."""
        return _login(self.sentinel_user, self.sentinel_password)

    def redis_py(self) -> dict[str, Any]:
        """What `ssl_context` says, for connections of redis-py."""
        if not self.is_tls:
            return {}
        files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.certificate, "ssl_keyfile": self.private_key}
        return {"ssl": True, "ssl_check_hostname": True, **{name: str(file) for name, file in files.items() if file}}


def _login(user: str | None, password: str | None) -> tuple[str, str] | None:
    """A user without a password (`nopass`) logs in too, and a password alone is the default user's."""
    return (user or "default", password or "") if user or password else None


class Keys:
    """Names at Redis. Everything of a channel has the same hash tag, so a Cluster keeps it on one shard and a script may
    touch it all. Neither tenants nor channel names can hold a brace or, for tenants, a colon."""

    __slots__ = ("_events", "_prefix")

    def __init__(self, prefix: str, database: int = 0) -> None:
        self._prefix = prefix
        # Pub/Sub knows no databases: without this, services on two of them would hear each other.
        self._events = f"events:{database}" if database else "events"

    def channel(self, channel: ChannelKey, part: str) -> str:
        """A part of a channel: `prefix:{tenant:name}:part`."""
        return f"{self._prefix}:{{{channel.tenant}:{channel.name}}}:{part}"

    def events(self, channel: ChannelKey) -> str:
        """Where a channel's events are published."""
        return self.channel(channel, self._events)

    def tagged(self, kind: str, tag: str) -> str:
        """Something that is no channel's: `prefix:kind:{tag}`."""
        return f"{self._prefix}:{kind}:{{{tag}}}"


class Names(NamedTuple):
    """A channel's names at Redis."""

    tag: str
    """Any key of it, for finding its slot."""
    keys: tuple[str, str, str, str]
    receipt: str
    """What a receipt's key begins with."""
    events: bytes
    """Where it is published."""


def namer(prefix: str, database: int) -> Callable[[ChannelKey], Names]:
    """What gives a channel's names, and remembers those of many channels."""
    keys = Keys(prefix, database)

    @lru_cache(maxsize=20_000)
    def names(channel: ChannelKey) -> Names:
        meta = keys.channel(channel, "meta")
        return Names(
            meta,
            (meta, keys.channel(channel, "stream"), keys.channel(channel, "state"), keys.channel(channel, "order")),
            keys.channel(channel, "id:"),
            keys.events(channel).encode(),
        )

    return names


def milliseconds(seconds: float) -> int:
    """As Redis wants a duration: a whole number of them, and one at least."""
    return max(1, round(seconds * 1000))
