"""Takes back events at Redis: replaces single ones by tombstones, and purges channels."""

from __future__ import annotations

from collections.abc import Sequence

from service.adapters.redis import event_codec
from service.adapters.redis.command_executor import CommandExecutor
from service.adapters.redis.connections.link import Argument
from service.adapters.redis.keys import ChannelKeys
from service.adapters.redis.lua.scripts import PURGE, REMOVE
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.position import Position
from service.core.removal import epoch_notice, tombstone


class EventRemover:
    """Runs the scripts that take back events."""

    def __init__(self, executor: CommandExecutor, publish_command: str) -> None:
        """`publish_command` is PUBLISH or SPUBLISH."""
        self._executor = executor
        self._publish_command = publish_command

    async def remove(self, keys: ChannelKeys, events: Sequence[Event]) -> Sequence[bool]:
        """Runs lua/remove.lua. Returns for each event whether it is a tombstone now."""
        arguments: list[Argument] = []
        for event in events:
            arguments += (event.offset or 0, event.id, event_codec.encode_body(tombstone(event)))
        replies = await self._executor.run_script(REMOVE, keys, *arguments)
        return [bool(reply) for reply in replies]

    async def purge(self, channel: ChannelKey, keys: ChannelKeys) -> Position | None:
        """Runs lua/purge.lua. Returns the newest position; None for an empty channel."""
        notice = event_codec.encode_body(epoch_notice(channel, Position("", 1), 0))
        epoch, offset, id_ = await self._executor.run_script(PURGE, keys, self._publish_command, keys.events, notice)
        return Position(epoch.decode(), offset, id_.decode() if offset else None) if epoch else None
