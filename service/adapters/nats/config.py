"""What the NATS adapters are told, and how they name their subjects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import quote, unquote

from service.adapters.store.config import StoreConfig
from service.core.channel import ChannelKey


@dataclass(frozen=True, slots=True)
class NatsConfig(StoreConfig):
    """Where the servers are."""

    servers: tuple[str, ...]
    """Each nats://host:port, or tls://host:port."""

    @property
    def is_tls(self) -> bool:
        """As the addresses say."""
        return self.servers[0].startswith("tls://")


class Subjects:
    """Names at NATS, all below the prefix; the tenant and the channel are tokens of their own, so that the server's
    permissions can be written for them.

    What the stream keeps: `e` events, `h` heads, `i` ids, `x` what belongs to no channel. What is heard live: `live`.
    """

    __slots__ = ("prefix",)

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @property
    def kept(self) -> list[str]:
        """What the stream takes up."""
        return [f"{self.prefix}.{kind}.>" for kind in "ehix"]

    def durable(self, channel: ChannelKey, segment: int | str = "*") -> str:
        """A segment of a channel's durable events; without one, all of them."""
        return f"{self.prefix}.e.{_tokens(channel)}.d.{segment}"

    def value(self, channel: ChannelKey, type: str, key: str | None) -> str:
        """The newest event of a type and key."""
        return f"{self.prefix}.e.{_tokens(channel)}.l.{digest(type, key)}"

    def state(self, channel: ChannelKey) -> str:
        """Every `value` of a channel."""
        return f"{self.prefix}.e.{_tokens(channel)}.l.*"

    def head(self, channel: ChannelKey) -> str:
        """How far a channel has come."""
        return f"{self.prefix}.h.{_tokens(channel)}"

    def heads(self, tenant: str) -> str:
        """The heads of a tenant's channels."""
        return f"{self.prefix}.h.{token(tenant)}.*"

    def id(self, channel: ChannelKey, sender: str | None, id: str) -> str:
        """What became of a publication."""
        return f"{self.prefix}.i.{_tokens(channel)}.{digest(id, sender)}"

    def apart(self, kind: str, *names: str) -> str:
        """Something that is no channel's."""
        return ".".join((self.prefix, "x", kind, *map(token, names)))

    def present(self, channel: ChannelKey) -> str:
        """Who is in a channel."""
        return f"{self.prefix}.x.present.{_tokens(channel)}"

    def told(self, channel: ChannelKey) -> str:
        """Ephemeral events that are told together with a change of what nodes share."""
        return f"{self.prefix}.e.{_tokens(channel)}.p"

    def live(self, channel: ChannelKey) -> str:
        """Whatever happens in a channel."""
        return f"{self.prefix}.live.{_tokens(channel)}.>"

    def ephemeral(self, channel: ChannelKey) -> str:
        """Where a channel's ephemeral events are heard."""
        return f"{self.prefix}.live.{_tokens(channel)}.e"


def token(text: str) -> str:
    """Any text as one token: a dot would end it, and `*`, `>` and white space mean something else to NATS."""
    return quote(text, safe=":@~=+").replace(".", "%2E") or "%"  # NATS knows no empty token; no other text becomes this


def text(token: str) -> str:
    """The text that `token` made a token of."""
    return unquote(token)


def _tokens(channel: ChannelKey) -> str:
    return f"{token(channel.tenant)}.{token(channel.name)}"


def digest(first: str, second: str | None = None) -> str:
    """A token of fixed length for two texts of any; None and the empty text differ, and so do two splits of one text."""
    parts = (first.encode(), b"" if second is None else b"=" + second.encode())
    return hashlib.blake2b(len(parts[0]).to_bytes(4) + parts[0] + parts[1], digest_size=16).hexdigest()
