"""The names of subjects at NATS (docs/store-keys.md)."""

from __future__ import annotations

import hashlib
from urllib.parse import quote, unquote

from service.core.channel import ChannelKey


class Subjects:
    """Names subjects. Tenant and channel are separate tokens, so that permissions can name them.

    After the prefix, the stream has `e` events, `h` heads, `i` publish results, `x` documents. `live` is not stored.
    """

    __slots__ = ("prefix",)

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @property
    def stored(self) -> list[str]:
        """The subjects of the stream."""
        return [f"{self.prefix}.{kind}.>" for kind in "ehix"]

    def durable(self, channel: ChannelKey, segment: int | str = "*") -> str:
        """A segment of a channel's durable events; by default all of them."""
        return f"{self.prefix}.e.{_tokens(channel)}.d.{segment}"

    def value(self, channel: ChannelKey, type: str, key: str | None) -> str:
        """The newest event of a type and key."""
        return f"{self.prefix}.e.{_tokens(channel)}.l.{digest(type, key)}"

    def state(self, channel: ChannelKey) -> str:
        """Every `value` of a channel."""
        return f"{self.prefix}.e.{_tokens(channel)}.l.*"

    def head(self, channel: ChannelKey) -> str:
        """The head of a channel."""
        return f"{self.prefix}.h.{_tokens(channel)}"

    def heads(self, tenant: str) -> str:
        """The heads of a tenant's channels."""
        return f"{self.prefix}.h.{to_token(tenant)}.*"

    def result(self, channel: ChannelKey, sender: str | None, id: str) -> str:
        """The result of a publish."""
        return f"{self.prefix}.i.{_tokens(channel)}.{digest(id, sender)}"

    def document(self, kind: str, *names: str) -> str:
        """A document that belongs to no channel."""
        return ".".join((self.prefix, "x", kind, *map(to_token, names)))

    def members(self, channel: ChannelKey) -> str:
        """The document of a channel's members."""
        return f"{self.prefix}.x.present.{_tokens(channel)}"

    def document_events(self, channel: ChannelKey) -> str:
        """The ephemeral events that are written together with a document."""
        return f"{self.prefix}.e.{_tokens(channel)}.p"

    def live(self, channel: ChannelKey) -> str:
        """Everything that is delivered to a channel's subscribers."""
        return f"{self.prefix}.live.{_tokens(channel)}.>"

    def live_ephemeral(self, channel: ChannelKey) -> str:
        """A channel's ephemeral events, which are not stored."""
        return f"{self.prefix}.live.{_tokens(channel)}.e"


def to_token(text: str) -> str:
    """Encodes any text as one token. A dot would end it, and `*`, `>` and white space have a special meaning in
    NATS."""
    return quote(text, safe=":@~=+").replace(".", "%2E") or "%"  # NATS has no empty token; no other text becomes this


def from_token(token: str) -> str:
    """Decodes a token."""
    return unquote(token)


def digest(first: str, second: str | None = None) -> str:
    """Returns a token of fixed length for two texts of any length; None and the empty text differ."""
    parts = (first.encode(), b"" if second is None else b"=" + second.encode())
    return hashlib.blake2b(len(parts[0]).to_bytes(4) + parts[0] + parts[1], digest_size=16).hexdigest()


def _tokens(channel: ChannelKey) -> str:
    return f"{to_token(channel.tenant)}.{to_token(channel.name)}"
