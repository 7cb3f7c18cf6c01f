"""The newest events that this node has seen in its subscribed channels.

NATS does not report that it has lost accepted messages. A node detects the loss when a head is older than what the node
has seen, or when an offset arrives with another id.
"""

from __future__ import annotations

from service.adapters.nats.records import ChannelHead, EventRecord, SeenHead
from service.core.channel import ChannelKey


class SeenHeads:
    """Compares events and heads of tracked channels with what was seen before."""

    def __init__(self) -> None:
        self._tracked: set[ChannelKey] = set()
        self._seen: dict[ChannelKey, SeenHead] = {}
        self._suspected: set[ChannelKey] = set()
        """Channels that have lost something. Their events are not delivered until they have a new epoch."""

    def track(self, channel: ChannelKey) -> None:
        """Records what is seen of the channel from now on."""
        self._tracked.add(channel)

    def untrack(self, channel: ChannelKey) -> None:
        """Forgets the channel."""
        self._tracked.discard(channel)
        self._seen.pop(channel, None)
        self._suspected.discard(channel)

    def clear(self) -> None:
        """Forgets all channels."""
        self._tracked.clear()
        self._seen.clear()
        self._suspected.clear()

    def get(self, channel: ChannelKey) -> SeenHead | None:
        """Returns what was seen of the channel."""
        return self._seen.get(channel)

    def is_suspected(self, channel: ChannelKey) -> bool:
        """Whether NATS has lost something of the channel."""
        return channel in self._suspected

    def suspect(self, channel: ChannelKey) -> None:
        """Records that NATS has lost something of the channel."""
        self._suspected.add(channel)

    def record_head(self, channel: ChannelKey, head: ChannelHead) -> None:
        """Records a head, if the channel is tracked. It may be older than what was seen."""
        if channel not in self._tracked:
            return
        seen, read = self._seen.get(channel), head.seen
        if seen is None or seen.epoch != read.epoch:
            self._suspected.discard(channel)
        else:
            if seen.offset > read.offset:
                read = read._replace(offset=seen.offset, id=seen.id)
            if seen.state_version > read.state_version:
                read = read._replace(state_version=seen.state_version, state_id=seen.state_id)
        self._seen[channel] = read

    def record_event(self, channel: ChannelKey, record: EventRecord) -> bool:
        """Records an event. Returns False if another event was seen at its place: NATS must have lost that one."""
        seen = self._seen.get(channel)
        if seen is None or seen.epoch != record.epoch:
            self._suspected.discard(channel)
            seen = SeenHead(record.epoch)
        if channel in self._suspected:
            return False
        if record.offset is not None:
            if record.offset < seen.offset or (record.offset == seen.offset and record.id != seen.id):
                return False
            seen = seen._replace(offset=record.offset, id=record.id)
        elif record.state_version is not None:
            if record.state_version < seen.state_version or (
                record.state_version == seen.state_version and record.id != seen.state_id
            ):
                return False
            seen = seen._replace(state_version=record.state_version, state_id=record.id)
        self._seen[channel] = seen
        return True


def must_end_epoch(head: ChannelHead, seen: SeenHead | None, *, is_suspected: bool) -> bool:
    """Whether a head's epoch must end, judged by what was seen of the channel before the head was read."""
    return seen is not None and (head.lacks(seen) or (is_suspected and head.epoch == seen.epoch))
