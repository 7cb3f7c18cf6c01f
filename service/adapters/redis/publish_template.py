"""Publications as Redis takes them. What those of a channel have in common is packed once and kept: packing all of it costs as
much as everything else that a node does for an event."""

from __future__ import annotations

from collections.abc import Callable

from service.adapters.redis import event_codec
from service.adapters.redis.config import Names, milliseconds
from service.adapters.redis.connections.link import Argument, Link, pack
from service.adapters.redis.lua.scripts import PUBLISH
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention

CHANNELS = 20_000
"""Whose forms are kept, of each delivery class: a kilobyte or so."""

_DURABLE = Delivery.DURABLE  # a member of an Enum is slow to look up
_LENGTHS = tuple(b"$%d\r\n" % number for number in range(2048))
"""What stands before an argument of so many bytes."""


class PublishTemplate:
    """The call of publish.lua with the durable or the latest publications of a channel, but for what differs between them."""

    __slots__ = (
        "_generation",
        "_head",
        "_key",
        "_middle",
        "_what",
        "at",
        "epoch",
        "id",
        "is_durable",
        "place",
        "retention",
        "tag",
    )

    def __init__(self, names: Names, retention: Retention, is_durable: bool, *what: Argument) -> None:
        """`what` is what publish.lua is told of all of them."""
        self.tag = names.tag
        """See Names."""
        self.retention = retention
        """What it is made for."""
        self.is_durable = is_durable
        """Of which kind its publications are."""
        self.epoch, self.place, self.id, self.at = "", 0, "", 0
        """Where the newest one was accepted that this node has published, its id, and its time in milliseconds."""
        self._what = what
        keys = names.keys
        command = ("EVALSHA", PUBLISH.sha, len(keys) + 1, *keys)
        others = 4 if is_durable else 5  # the receipt's key, generation, id, body; slot
        self._head = b"*%d\r\n" % (len(command) + len(what) + others) + _packed(*command)
        self._key = names.receipt.encode()
        self._generation: str | None = None
        self._middle = b""
        """What a server in this life is told of all of them."""

    def fill_in(self, publication: Publication, link: Link) -> bytes:
        """The call with one of them, for a link to send."""
        if link.generation != self._generation:
            self._generation = link.generation
            self._middle = b"\r\n" + _packed(link.generation, *self._what)
        id_, sender, key = publication.id, publication.sender, self._key
        receipt = (id_ if sender is None else f"{id_} {sender}").encode()  # an id holds no space
        id_bytes = id_.encode()
        body = event_codec.encode(publication)
        parts: tuple[bytes, ...] = (
            self._head,
            _length(len(key) + len(receipt)),
            key,
            receipt,
            self._middle,
            _length(len(id_bytes)),
            id_bytes,
            b"\r\n",
            _length(len(body)),
            body,
            b"\r\n",
        )
        if not self.is_durable:
            slot = f"{publication.type}\n{publication.key or ''}".encode()
            parts = (*parts, _length(len(slot)), slot, b"\r\n")
        return b"".join(parts)


class PublishTemplates:
    """A form for every channel that is published in. `seed` and `position_ttl` are what channel.lua wants, `publish` what
    publish.lua wants."""

    def __init__(
        self,
        names: Callable[[ChannelKey], Names],
        *,
        seed: str,
        position_ttl: int,
        idempotency_window: float,
        publish: str,
    ) -> None:
        self._names = names
        self._always = (seed, position_ttl)
        self._window = milliseconds(idempotency_window)
        self._publish = publish
        self._durable: dict[ChannelKey, PublishTemplate] = {}
        self._latest: dict[ChannelKey, PublishTemplate] = {}

    def of(self, publication: Publication) -> PublishTemplate:
        """The form for a durable or latest publication. Raises ValueError for one without retention."""
        is_durable = publication.delivery is _DURABLE
        forms = self._durable if is_durable else self._latest
        form = forms.get(publication.channel)
        if form is None or form.retention is not publication.retention:
            if len(forms) >= CHANNELS:
                forms.clear()
            form = forms[publication.channel] = self._new(publication, is_durable)
        return form

    def _new(self, publication: Publication, is_durable: bool) -> PublishTemplate:
        retention = publication.retention
        if retention is None:
            raise ValueError(f"a {publication.delivery.value} publication needs a retention")
        names = self._names(publication.channel)
        kept = (max(0, retention.entries), milliseconds(retention.ttl), self._window)
        kind = "d" if is_durable else "l"
        return PublishTemplate(names, retention, is_durable, *self._always, kind, *kept, self._publish, names.events)


def _length(size: int) -> bytes:
    return _LENGTHS[size] if size < len(_LENGTHS) else b"$%d\r\n" % size


def _packed(*arguments: Argument) -> bytes:
    """Arguments within a command: without the line that says how many there are."""
    return pack(arguments).partition(b"\r\n")[2]
