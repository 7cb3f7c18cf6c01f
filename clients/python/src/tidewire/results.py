"""Results of the backend API. Fields that do not apply are None."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from msgspec import Struct

from tidewire.errors import TidewireError
from tidewire.events import Event, Position


class Published(Struct, frozen=True):
    """An event was accepted. Durable events have `epoch` and `offset`, latest ones `epoch` and `rev`."""

    id: str
    duplicate: bool = False
    """Whether it was accepted before; then it was not delivered again."""
    epoch: str | None = None
    offset: int | None = None
    rev: int | None = None


class Refused(Struct, frozen=True):
    """One event of several was refused."""

    id: str
    error: TidewireError


class BatchResult(Sequence["Published | Refused"]):
    """The results of `publish_many`, one for each event, in order."""

    def __init__(self, results: Sequence[Published | Refused]) -> None:
        self._results = tuple(results)

    @overload
    def __getitem__(self, index: int) -> Published | Refused: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Published | Refused]: ...
    def __getitem__(self, index: int | slice) -> Published | Refused | Sequence[Published | Refused]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Published | Refused]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<BatchResult: {len(self.published)} published, {len(self.refused)} refused>"

    @property
    def published(self) -> list[Published]:
        """The accepted events."""
        return [result for result in self._results if isinstance(result, Published)]

    @property
    def refused(self) -> list[Refused]:
        """The refused events."""
        return [result for result in self._results if isinstance(result, Refused)]

    def raise_for_refused(self) -> None:
        """Raises the error of the first refused event, if there is one."""
        for result in self.refused:
            raise result.error


class ListedChannel(Struct, frozen=True):
    """A channel and its newest position."""

    channel: str
    epoch: str
    offset: int
    subscribers: int
    """Connections that have subscribed to it, on all nodes."""
    last: str | None = None

    @property
    def position(self) -> Position:
        """The newest position."""
        return Position(self.epoch, self.offset, self.last)


class ChannelList(Struct, frozen=True):
    """Channels, by name. `more`: there are others; ask with a longer prefix."""

    channels: list[ListedChannel]
    more: bool
    complete: bool
    """Whether every node has answered; otherwise `subscribers` covers only those that did."""


class ChannelInfo(ListedChannel, frozen=True, kw_only=True):
    """A channel, its newest position, and what the contract declares for it."""

    complete: bool
    contract: dict[str, Any]


class History(Struct, frozen=True):
    """A page of durable events, oldest first. The position is the channel's newest one, not the page's."""

    channel: str
    epoch: str
    offset: int
    events: list[Event]
    more: bool
    last: str | None = None
    older: str | None = None
    """The path of the page before this one, for `history_page`; only in channels with cacheable history."""
    newer: str | None = None

    @property
    def position(self) -> Position:
        """The channel's newest position."""
        return Position(self.epoch, self.offset, self.last)


class HistoryPage(Struct, frozen=True):
    """A page of history that caches may keep."""

    channel: str
    epoch: str
    events: list[Event]
    more: bool = False
    older: str | None = None
    newer: str | None = None


class State(Struct, frozen=True):
    """The newest event of every key, by `rev`."""

    channel: str
    epoch: str
    offset: int
    state: list[Event]
    more: bool
    last: str | None = None


class Member(Struct, frozen=True):
    """A user who is in a channel."""

    user: str
    connections: int = 1
    info: Any = None
    updated: bool = False
    """Whether the user's client has set `info`; otherwise it is from the token."""


class Presence(Struct, frozen=True):
    """The users in a channel. In a large channel `members` is None."""

    count: int
    members: list[Member] | None = None


class EventRemoved(Struct, frozen=True):
    """An event was taken back (`offset`), or a value was removed (`rev`)."""

    channel: str
    id: str
    epoch: str
    offset: int | None = None
    rev: int | None = None


class Purged(Struct, frozen=True):
    """A channel's history and state are gone. Without `epoch`, nothing was ever published in it."""

    channel: str
    offset: int
    epoch: str | None = None


class Erased(Struct, frozen=True):
    """What a user has published was taken back."""

    removed: int
    channels: int


class Disconnected(Struct, frozen=True):
    """How many connections were closed, and how many nodes have answered."""

    connections: int
    nodes: int
    complete: bool
    """Whether these are all nodes."""


class Subscriptions(Struct, frozen=True):
    """How many subscriptions were begun or ended, and how many nodes have answered."""

    subscriptions: int
    nodes: int
    complete: bool


class UserRevoked(Struct, frozen=True):
    """Tokens of the user that were issued before `before` are refused until `until` (Unix seconds)."""

    before: float
    until: float


class TokenRevoked(Struct, frozen=True):
    """The token is refused until `until` (Unix seconds)."""

    until: float


class Ticket(Struct, frozen=True):
    """A short-lived credential for an address. It is a secret: its repr hides it."""

    ticket: str
    expires_in: float

    def __repr__(self) -> str:
        return f"Ticket(expires_in={self.expires_in})"


class WebhookQueue(Struct, frozen=True):
    """One queue of a webhook's endpoint."""

    queue: int
    waiting: int
    """Records that are not delivered yet; an event takes up to two."""
    oldest_at: int | None = None
    """When the oldest of them was written, in milliseconds since the Unix epoch."""
    owner: str | None = None
    """The node that delivers; None if none does at the moment."""
    failure: str | None = None
    """Why the last delivery failed; None if it succeeded."""


class WebhookEndpoint(Struct, frozen=True):
    """An endpoint of webhooks, and its queues."""

    endpoint: str
    sends: bool
    """Whether the settings give it a `url`."""
    queues: list[WebhookQueue]


class WebhookList(Struct, frozen=True):
    """The endpoints of webhooks of the tenant, by name."""

    tenant: str
    at: int
    """The service's time, in milliseconds since the Unix epoch."""
    endpoints: list[WebhookEndpoint]


class WebhookEntries(Struct, frozen=True):
    """Entries of one queue, in the order of delivery."""

    endpoint: str
    queue: int
    entries: list[dict[str, Any]]
    """As the endpoint gets them."""
    next: str
    """`after` of the next page."""
    more: bool
    """Whether the next page may have entries already."""


class WebhookDeadLetter(Struct, frozen=True):
    """An entry that the endpoint did not accept."""

    entry: dict[str, Any]
    queue: int
    reason: str
    """Why the last attempt failed."""
    at: int
    """When it became a dead letter, in milliseconds since the Unix epoch."""


class WebhookDeadLetters(Struct, frozen=True):
    """Dead letters of an endpoint, oldest first."""

    endpoint: str
    dead_letters: list[WebhookDeadLetter]
    next: int | None = None
    """`after` of the next page; None after the last one."""


class ErasedPage(Struct, frozen=True):
    """A part of an erasure."""

    removed: int
    channels: int
    cursor: str | None = None
