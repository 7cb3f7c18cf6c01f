"""The Broker port: carries events between nodes, and keeps the history and state of channels.

Every implementation guarantees (tests/contract/broker_suite.py checks each of them):

- A publish that returns is in the stream exactly once. A publish that raises is in it at most once, also if it is repeated with
  the same id.
- Per channel and epoch, offsets of durable events have no gaps, and each comes once. So do state versions of latest events. The
  first epoch of a channel begins at 1.
- A store that may have lost accepted events (after a restart or a failover) starts a new epoch, whose offsets continue from
  what is left. It also does so when a node has delivered more of a channel than the store has (`stream_heads`).
- Between the return of `subscribe` and the call of `unsubscribe`, the sink gets every event of the channel, in the order of
  offsets and state versions. If not, the sink is notified (`interrupted`), and the stream has the missing events.
- Tenants never see each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from msgspec import Struct

from service.aio.pending import Pending
from service.core.channel import ChannelKey
from service.core.event import Event, Publication
from service.core.position import Position

MAX_REMOVED_VALUES = 1_000
"""Removals of values that a broker keeps for a channel. A node that has missed more reads the whole state."""


class PublishResult(Struct, frozen=True, gc=False):
    """The outcome of a publish. A struct, because every message makes one."""

    id: str
    epoch: str
    """The epoch of the stream; empty for EPHEMERAL, which enters no stream."""
    offset: int | None = None
    state_version: int | None = None
    duplicate: bool = False
    """True if the same (tenant, channel, sender, id) was accepted before, within the idempotency window. Offset and state
    version are those of the first publish; nothing is delivered again."""


class StreamHead(NamedTuple):
    """The end of a channel's stream and state; cheap to read for thousands of channels."""

    epoch: str
    """Empty for a channel that the broker does not know."""
    offset: int
    state_version: int


class DeliveredHead(NamedTuple):
    """The last event and state version that a node has delivered of a channel. The store must still have both."""

    position: Position
    state_version: int
    lowest_repeat: int | None = None
    """The lowest offset that was delivered twice, if any. From there on, the store may have other events than the node has
    delivered."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Part of a stream, oldest first."""

    position: Position
    """The newest position of the stream."""
    events: Sequence[Event]
    has_more: bool
    """True if the stream holds further events in the requested direction."""


class Snapshot(Struct, frozen=True):
    """A channel at one moment."""

    position: Position
    """The newest position of the stream."""
    state: Sequence[Event]
    """The newest event of every (type, key), by state version."""
    missed: Sequence[Event]
    """The events after the requested position; empty unless `recovered` is True."""
    recovered: bool | None
    """None if no position was requested; False if the stream may have a gap after it."""
    state_version: int = 0
    """The newest state version. The last event of `state` may be older, as values expire."""
    epoch_start: int | None = None
    """The offset at which the epoch began: every durable event above it belongs to the epoch. None if unknown."""
    tail: Sequence[Event] = ()
    """The last events of the stream up to `position`, oldest first: as many as were requested and are kept."""

    @property
    def head(self) -> StreamHead:
        """The end of the stream and the state."""
        return StreamHead(self.position.epoch, self.position.offset, self.state_version)


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel that the broker knows, for the backend API."""

    name: str
    position: Position
    """The newest position of the stream."""


class EventSink(Protocol):
    """Receives what a broker delivers; the relay implements it."""

    def deliver(self, event: Event) -> None:
        """Receives one event. Called on the event loop, in order for each channel. Never blocks and never raises."""

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Reports that this node may have missed events of these channels. None means all subscribed channels.

        Called when delivery works again: a read that starts now leaves no gap before the next delivered event.
        """


class Broker(Protocol):
    """Keeps the guarantees of this module. Every method raises ServiceError(BROKER_UNAVAILABLE) if the store fails.

    A coroutine may be started outside of any task (`send(None)`) and finished inside one.
    """

    @property
    def delivers_synchronously(self) -> bool:
        """True if the sink has received an event before `publish` returns. Then the sink is never behind the stream."""

    async def start(self, sink: EventSink) -> None:
        """Connects, and delivers to the sink from now on. Called once, before anything else."""

    async def close(self) -> None:
        """Releases all resources. Later calls raise."""

    async def check(self) -> None:
        """Raises if the store does not answer now."""

    async def publish(self, publication: Publication) -> PublishResult:
        """Accepts an event and delivers it to every subscribed node.

        DURABLE events are appended to the stream. LATEST events replace the value of their (type, key), or remove it.
        EPHEMERAL events and their ids are forgotten. The retention of the newest publication applies to the whole stream or
        state.

        Raises ServiceError(CONFLICT), and does nothing, if the value of the key has another version than `if_version`. A repeated
        id gets the first result nevertheless.

        A call that is cancelled leaves nothing behind except perhaps the event.
        """

    def start_publish(self, publication: Publication) -> PublishResult | Pending[PublishResult] | None:
        """Does the same as `publish` without a coroutine. Returns the result if it needs no wait, or else what waits for it.

        Does nothing and returns None if the broker cannot do so: call `publish`.
        """

    async def subscribe(self, channel: ChannelKey) -> None:
        """Delivers every event of the channel to the sink from the return of this call on."""

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """Stops the delivery; events in flight may be dropped. Does nothing without a subscription."""

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        """Reads position, state, the events missed since a position, and the last `tail` events, all in one atomic step.

        A position is not recovered if more than `max_events` events or `max_bytes` bytes of data came after it, or if the
        stream has not reached it. The second shows that the store was set back, so the channel starts a new epoch. It does not if
        its epoch is younger than `epoch.MIN_EPOCH_AGE`, because clients can invent a position.

        A tail of more than `max_bytes` bytes of data begins later. The last event is in it whatever its size.
        """

    async def stream_heads(
        self, channels: Sequence[ChannelKey], delivered: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """Reads the head of each channel, in their order. Creates no channel. None for a head that cannot be read now.

        `delivered`: what this node has delivered of each channel (None: unknown). A channel that has lost a part of that starts a
        new epoch, below `lowest_repeat` if that is given.
        """

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """Reads a page of the stream: the first `limit` events after an offset, or else the last `limit` before one.

        Without `after` and `before`, reads the last `limit` events. With both, reads the first `limit` events between them. A
        page of several megabytes ends early, with `has_more`.
        """

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        """Returns the removals of values above a state version that are still known, by state version.

        A broker keeps one at least for the idempotency window, unless there are more than MAX_REMOVED_VALUES newer ones, or more
        than the state may have keys.
        """

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        """Lists at most `limit` channels of the tenant by name that have subscribers, history or state.

        `after`: only channels whose names come after this one, for the next page.
        """

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """Replaces durable events, as `history` has returned them, by their tombstones (core/removal.py). At most MAX_REMOVALS.

        Returns for each whether it is a tombstone now; False if the stream does not keep it any more. Delivers nothing. Publish
        results stay, so that a publish of the same id is still a duplicate.
        """

    async def purge(self, channel: ChannelKey) -> Position | None:
        """Drops the history and the state of a channel, and begins a new epoch, in which offsets and state versions continue.

        Returns the newest position, or None for a channel in which nothing was ever published; then it does nothing. The sinks
        of subscribed nodes get an event that shows the new epoch, unless it is lost on the way. Publish results stay. After an
        error, history and state may be gone in part; a repeated call drops the rest.
        """
