"""The Broker port: what carries events between nodes and keeps history and state.

The guarantee, for every implementation (tests/contract/broker_suite.py holds each one to it):

- A publish that returns is in the stream, once; one that raises may be repeated with the same id and is in it at most once.
- Per channel and epoch, offsets of durable events and state versions of latest ones are dense: 1, 2, 3 …, each once. A
  store that may have lost something it had accepted (it was restarted, or another replica took over) starts a new epoch;
  offsets go on from what is left. So does one that is found behind what a node knows of it (`marks`): it was set back.
- Between `subscribe` returning and `unsubscribe` being called, every event of the channel reaches the sink in the order of
  its offset or state version, or the sink is told that some may not have (`interrupted`): the stream has what is missing.
- Nothing of one tenant is ever visible under another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from msgspec import Struct

from service.core.channel import ChannelKey
from service.core.event import Event, Publication
from service.core.position import Position


class Receipt(Struct, frozen=True, gc=False):
    """What became of a publication. A struct, as one is made for each."""

    id: str
    epoch: str
    """The stream's; empty with EPHEMERAL, which enters no stream."""
    offset: int | None = None
    state_version: int | None = None
    duplicate: bool = False
    """An earlier publication of the same (tenant, channel, sender, id) was accepted within the idempotency window;
    offset and state version are that one's, and nothing was delivered again."""


class StreamHead(NamedTuple):
    """How far a channel has come; cheap to read for thousands of channels."""

    epoch: str
    """Empty for a channel that the broker does not know."""
    offset: int
    state_version: int


class Known(NamedTuple):
    """How far a node has delivered a channel: what its store must not have forgotten."""

    position: Position
    state_version: int
    again: int | None = None
    """The lowest offset of which an event came although it had been delivered, if one did: from there on, what the node knows
    may not be what the store has now."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a stream, oldest first."""

    top: Position
    events: Sequence[Event]
    more: bool
    """Whether the stream holds further events in the direction asked for."""


class Snapshot(Struct, frozen=True):
    """A channel as it is at one moment."""

    top: Position
    state: Sequence[Event]
    """The newest event of every (type, key), by state version."""
    missed: Sequence[Event]
    """What came after the position asked for; empty when `recovered` is not True."""
    recovered: bool | None
    """None when no position was asked for; False when the stream cannot show that there is no hole after it."""
    state_version: int = 0
    """The newest state version; `state` may end below it, as values expire."""
    base: int | None = None
    """The offset at which the epoch began: every durable event above it belongs to the epoch. None if that is not known."""

    @property
    def mark(self) -> StreamHead:
        """How far the channel has come."""
        return StreamHead(self.top.epoch, self.top.offset, self.state_version)


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel that the broker knows, for the backend API."""

    name: str
    top: Position


class EventSink(Protocol):
    """Where a broker delivers: the relay."""

    def deliver(self, event: Event) -> None:
        """Takes one event. Called on the event loop, per channel in order; never blocks and never raises."""

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Some events of these channels (None: of all that are subscribed) may not have been delivered and will not be.

        Called when the broker delivers again, so that what is read now leaves no hole before what is delivered next.
        """


class Broker(Protocol):
    """See the module's docstring for the guarantee. Every method raises ServiceError(BROKER_UNAVAILABLE) if it can't.

    The coroutines may be begun (`send(None)`) outside of any task, and finished inside one.
    """

    @property
    def delivers_synchronously(self) -> bool:
        """Whether an event that is accepted has reached the sink by then: the sink knows all that the broker would say."""

    async def start(self, sink: EventSink) -> None:
        """Makes the broker usable and names the sink. Called once, first."""

    async def close(self) -> None:
        """Lets everything go. Later calls raise."""

    async def check(self) -> None:
        """Returns if the store answers now, else raises."""

    async def publish(self, publication: Publication) -> Receipt:
        """Accepts an event: by its delivery class appends it to the stream or replaces the value of its (type, key),
        then delivers it to every node that has subscribed. Ephemeral events are delivered and forgotten, their ids too.

        The newest publication's retention holds for the whole stream (DURABLE) or state (LATEST).

        Cancelled or closed at any time, it leaves nothing behind but perhaps the event.
        """

    async def subscribe(self, channel: ChannelKey) -> None:
        """From its return on, every event of the channel reaches the sink."""

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """Stops that; what is on its way may be dropped. Harmless when not subscribed."""

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """Reads top, state and what was missed since a position, as of one moment.

        More than `max_events` events or `max_bytes` bytes of missed data count as not recovered. A position that the epoch
        has not come to is not recovered either; where the store can be set back, the channel starts a new epoch then, unless
        the epoch is younger than `epoch.MIN_EPOCH_AGE`.
        """

    async def marks(
        self, channels: Sequence[ChannelKey], known: Sequence[Known | None] = ()
    ) -> Sequence[StreamHead | None]:
        """How far each of the channels has come, in their order; makes none that is not there. None for one that cannot be
        read just now while others can.

        `known`: how far this node has delivered each of them (None: it does not say). A channel that has lost something of
        that starts a new epoch, below `again` if that is given.
        """

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> Page:
        """Reads a page: the first `limit` events with an offset above `after`, or else the last `limit` below `before`, or
        else the last `limit`. With both given: the first `limit` of those between. Of megabytes it may give fewer, and `more`."""

    async def channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
        """The tenant's channels that have subscribers, history or state, by name, from `prefix`; at most `limit`."""
