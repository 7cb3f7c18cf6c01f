"""Encodes the calls of lua/publish.lua.

The part that all publications of a channel share is encoded once and kept. Encoding everything each time would double a
node's cost of an event.
"""

from __future__ import annotations

from collections.abc import Callable

from service.adapters.redis import event_codec
from service.adapters.redis.config import milliseconds
from service.adapters.redis.connections.link import Argument, Link, pack
from service.adapters.redis.keys import ChannelKeys
from service.adapters.redis.lua.scripts import PUBLISH
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention

MAX_TEMPLATES = 20_000
"""Templates of each delivery class that are kept; one takes about a kilobyte."""

_DURABLE = Delivery.DURABLE  # a member of an Enum is slow to look up
_LENGTHS = tuple(b"$%d\r\n" % number for number in range(2048))
"""The RESP header of an argument, by its length."""


class PublishTemplate:
    """The call of publish.lua for the durable or the latest publications of one channel."""

    __slots__ = (
        "_arguments",
        "_command",
        "_generation",
        "_head",
        "_middle",
        "_result_prefix",
        "accepted_at",
        "epoch",
        "id",
        "is_durable",
        "number",
        "retention",
        "tag",
    )

    def __init__(self, keys: ChannelKeys, retention: Retention, is_durable: bool, *arguments: Argument) -> None:
        """`arguments`: those of publish.lua that are the same for all publications."""
        self.tag = keys.tag
        """A key of the channel, to find its slot."""
        self.retention = retention
        self.is_durable = is_durable
        self.epoch, self.number, self.id, self.accepted_at = "", 0, "", 0
        """This node's newest publication: its epoch, offset or state version, id, and time in ms."""
        self._arguments = arguments
        shared = keys.keys if is_durable else (*keys.keys, keys.expiries, keys.removed_values)
        self._command: tuple[Argument, ...] = ("EVALSHA", PUBLISH.sha, len(shared) + 1, *shared)
        self._head = self._encode_head(4 if is_durable else 5)  # the result's key, generation, id, body; type and key
        self._result_prefix = keys.result_prefix.encode()
        self._generation: str | None = None
        self._middle = b""
        """The generation and the shared arguments, encoded."""

    def _encode_head(self, others: int) -> bytes:
        """Encodes the beginning of a call with so many arguments that are not shared."""
        size = len(self._command) + len(self._arguments) + others
        return b"*%d\r\n" % size + _encode(*self._command)

    def record(self, epoch: str, number: int, publication: Publication) -> None:
        """Records the newest accepted publication."""
        self.epoch, self.number, self.id, self.accepted_at = epoch, number, publication.id, publication.at

    def encode(self, publication: Publication, link: Link) -> bytes:
        """Returns the call for one publication on a link."""
        if link.generation != self._generation:
            self._generation = link.generation
            self._middle = b"\r\n" + _encode(link.generation, *self._arguments)
        id_, sender, prefix = publication.id, publication.sender, self._result_prefix
        result_key = (id_ if sender is None else f"{id_} {sender}").encode()  # an id holds no space
        id_bytes = id_.encode()
        body = event_codec.encode_body(publication)
        parts: tuple[bytes, ...] = (
            self._head,
            _length(len(prefix) + len(result_key)),
            prefix,
            result_key,
            self._middle,
            _length(len(id_bytes)),
            id_bytes,
            b"\r\n",
            _length(len(body)),
            body,
            b"\r\n",
        )
        if not self.is_durable:
            field = f"{publication.type}\n{publication.key or ''}".encode()
            parts = (*parts, _length(len(field)), field, b"\r\n")
            if publication.ttl is not None or publication.removed or publication.if_version is not None:
                ttl = "" if publication.ttl is None else publication.ttl
                version = "" if publication.if_version is None else publication.if_version
                special = _encode(ttl, int(publication.removed), version)
                return b"".join((self._encode_head(8), *parts[1:], special))
        return b"".join(parts)


class PublishTemplates:
    """The templates of all channels."""

    def __init__(
        self,
        keys: Callable[[ChannelKey], ChannelKeys],
        *,
        epoch_seed: str,
        position_ttl: int,
        idempotency_window: float,
        publish_command: str,
    ) -> None:
        """`epoch_seed` and `position_ttl` are arguments of channel.lua, `publish_command` is PUBLISH or SPUBLISH."""
        self._keys = keys
        self._channel_arguments = (epoch_seed, position_ttl)
        self._idempotency_window = milliseconds(idempotency_window)
        self._publish_command = publish_command
        self._durable: dict[ChannelKey, PublishTemplate] = {}
        self._latest: dict[ChannelKey, PublishTemplate] = {}

    def get(self, publication: Publication) -> PublishTemplate:
        """Returns the template for a durable or latest publication. Raises ValueError for one without retention."""
        is_durable = publication.delivery is _DURABLE
        templates = self._durable if is_durable else self._latest
        template = templates.get(publication.channel)
        if template is None or template.retention is not publication.retention:
            if len(templates) >= MAX_TEMPLATES:
                templates.clear()
            template = templates[publication.channel] = self._make(publication, is_durable)
        return template

    def _make(self, publication: Publication, is_durable: bool) -> PublishTemplate:
        retention = publication.retention
        if retention is None:
            raise ValueError(f"a {publication.delivery.value} publication needs a retention")
        keys = self._keys(publication.channel)
        limits = (max(0, retention.entries), milliseconds(retention.ttl), self._idempotency_window)
        return PublishTemplate(
            keys,
            retention,
            is_durable,
            *self._channel_arguments,
            "d" if is_durable else "l",
            *limits,
            self._publish_command,
            keys.events,
        )


def _length(size: int) -> bytes:
    return _LENGTHS[size] if size < len(_LENGTHS) else b"$%d\r\n" % size


def _encode(*arguments: Argument) -> bytes:
    """Encodes arguments within a command: without the header that counts them."""
    return pack(arguments).partition(b"\r\n")[2]
