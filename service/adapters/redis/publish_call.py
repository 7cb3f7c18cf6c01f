"""A publish at Redis: from the publication to its result. It has no task, unless its result needs another call first."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from service.adapters.redis import event_codec
from service.adapters.redis.command_executor import Call
from service.adapters.redis.connections.link import Link, pack
from service.adapters.redis.keys import ChannelKeys
from service.adapters.redis.lua.scripts import PUBLISH, Script
from service.adapters.redis.publish_template import PublishTemplate
from service.adapters.store.errors import check_version
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication

_DURABLE = Delivery.DURABLE  # a member of an Enum is slow to look up


class FollowUp(Protocol):
    """The calls that a publish rarely needs before its result."""

    async def report_repeat(self, publication: Publication, template: PublishTemplate, number: int) -> None:
        """Reports that Redis gave an offset or state version twice: the channel was set back."""

    async def list_channel(self, channel: ChannelKey, ttl: float) -> None:
        """Adds a channel to its tenant's index, for `ttl` seconds."""


class PublishCall(Call[PublishResult]):
    """A call of lua/publish.lua, for a durable or latest event."""

    __slots__ = ("_follow_up", "_publication", "_template")

    def __init__(self, publication: Publication, template: PublishTemplate, follow_up: FollowUp) -> None:
        super().__init__(template.tag)
        self._publication = publication
        self._template = template
        self._follow_up = follow_up

    @property
    def script(self) -> Script:
        """Publishes, and stores the result. So the call may be repeated."""
        return PUBLISH

    def encode(self, link: Link) -> bytes:
        """Encodes the call by the channel's template."""
        return self._template.encode(self._publication, link)

    def accept(self, reply: Any) -> None:
        """Decodes the reply."""
        publication, template = self._publication, self._template
        is_duplicate = is_unindexed = False
        if type(reply) is list:
            is_duplicate = len(reply) == 1
            is_unindexed, reply = not is_duplicate, reply[0]
        elif type(reply) is int:
            check_version(publication.if_version or 0, reply)
        epoch, _, digits = reply.decode().partition(" ")
        number = int(digits)
        if publication.delivery is _DURABLE:
            result = PublishResult(publication.id, epoch, number, None, is_duplicate)
        else:
            result = PublishResult(publication.id, epoch, None, number, is_duplicate)
        if is_duplicate:
            is_unindexed = number == 1  # the first publish may have stopped before the index
            is_repeat = False
        else:
            is_repeat = number <= template.number and epoch == template.epoch
        if is_unindexed or is_repeat:
            self.continue_in_task(partial(self._finish_later, result, number, is_repeat, is_unindexed))
            return
        if not is_duplicate:
            template.record(epoch, number, publication)
        self.resolve(result)

    async def _finish_later(self, result: PublishResult, number: int, is_repeat: bool, is_unindexed: bool) -> None:
        publication, template = self._publication, self._template
        if is_repeat:
            await self._follow_up.report_repeat(publication, template, number)
        if not result.duplicate:
            template.record(result.epoch, number, publication)
        if is_unindexed:
            await self._follow_up.list_channel(publication.channel, template.retention.ttl)
        self.resolve(result)


class EphemeralCall(Call[PublishResult]):
    """A PUBLISH or SPUBLISH of an ephemeral event. It has no stored result, so it is sent once."""

    __slots__ = ("_accepted", "_message")

    def __init__(self, publication: Publication, keys: ChannelKeys, command: str) -> None:
        super().__init__(keys.tag)
        self._message = pack((command, keys.events, event_codec.encode_ephemeral(publication)))
        self._accepted = PublishResult(publication.id, "")

    @property
    def is_repeatable(self) -> bool:
        """False: a second one would be delivered twice."""
        return False

    def encode(self, link: Link) -> bytes:
        """Returns the command."""
        return self._message

    def accept(self, reply: Any) -> None:
        """Ignores the reply, which counts subscribers at the server."""
        self.resolve(self._accepted)
