"""What publishers and clients write down, and the oracle reads: facts only, no judgement. Structs, so that a crowd in a process
of its own can send its books home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum

from msgspec import Struct, field

LINES = 1_000_000
"""Lines that one publisher may number."""


class Key(Struct, frozen=True):
    """A channel of a tenant."""

    tenant: str
    channel: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.channel}"


def line(publisher: int, number: int) -> int:
    """What an event is known by, wherever it turns up: its publisher and that one's count."""
    return publisher * LINES + number


def publisher_of(line_: int) -> int:
    """Whose it is."""
    return line_ // LINES


class Ack(Struct, frozen=True):
    """A durable event that the service has accepted."""

    key: Key
    line: int
    epoch: str
    """Empty where the acknowledgement does not tell it: over WebSocket."""
    offset: int
    sent: float
    """When it was tried first."""
    at: float
    """When it was acknowledged."""
    tries: int = 1
    duplicate: bool = False


class Top(Struct, frozen=True):
    """Where a channel had come to. `at`: a moment before it had."""

    epoch: str
    offset: int
    at: float = 0.0


class Told(Enum):
    """What a client knew of the events between two stretches."""

    FRESH = "fresh"
    """It had no position: what came before is not its business."""
    LOST = "lost"
    """`recovered: false`: it was told that events are missing."""
    KEPT = "kept"
    """Nothing is missing, it was told, or was not told anything."""


class Stretch(Struct):
    """What a client applied in one epoch, from one `subscribed` that does not continue what it had, to the next."""

    epoch: str
    base: int
    """The offset it began at."""
    told: Told
    at: float
    top: int = 0
    """The offset that its position has come to."""
    offsets: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


class Diary(Struct):
    """Everything that one client has of one channel."""

    client: int
    key: Key
    stretches: list[Stretch] = field(default_factory=list)
    foreign: int = 0
    """Payloads of another tenant, or of another channel."""


class Sighting(Struct, frozen=True):
    """Somebody was told of an epoch."""

    key: Key
    epoch: str
    at: float


class Trouble(Struct, frozen=True):
    """Something that a client had to see."""

    at: float
    what: str
    """`error broker_unavailable`, `closed 1012`, `refused HTTP/1.1 503`, …"""
    client: int
    transport: str = ""
    """Of a client; a publisher has none."""


class CrowdBooks(Struct):
    """What all clients together have seen."""

    deliveries: int = 0
    slowest_by: dict[str, float] = {}
    """By transport: seconds between trying to publish an event and its application by the last client, at worst."""
    repeats: int = 0
    """Durable events that came again; the client's rule drops them."""
    gaps: int = 0
    """Times that an offset was jumped; the client's rule subscribes again."""
    resumed_by: dict[str, int] = {}
    """By transport: times that `recovered: true` came. Of polls: times that a session went on after a lost connection, and
    nothing was missing."""
    pushed: int = 0
    """`subscribed` that came in place, unasked."""
    told_by: dict[str, int] = {}
    """By transport: times that `reconnect` came."""
    tries: list[float] = field(default_factory=list)
    """When somebody tried to connect."""
    troubles: list[Trouble] = field(default_factory=list)
    presence: dict[str, int] = {}

    @property
    def slowest(self) -> float:
        """Of all transports."""
        return max(self.slowest_by.values(), default=0.0)

    @property
    def resumed(self) -> int:
        """Of all transports."""
        return sum(self.resumed_by.values())

    @property
    def told(self) -> int:
        """Of all transports."""
        return sum(self.told_by.values())

    def seen(self, what: str, since: float = 0.0, transport: str = "") -> int:
        """Troubles that begin with these words, of one transport or of all."""
        return sum(
            trouble.what.startswith(what) and transport in ("", trouble.transport)
            for trouble in self.troubles
            if trouble.at >= since
        )

    def peak(self, since: float, until: float, span: float = 1.0) -> float:
        """Tries to connect a second, in the busiest `span` seconds between two moments."""
        times = sorted(at for at in self.tries if since <= at < until)
        first, most = 0, 0
        for last, at in enumerate(times):
            while times[first] <= at - span:
                first += 1
            most = max(most, last + 1 - first)
        return most / span

    def tally(self, since: float = 0.0) -> dict[str, int]:
        """How often each came."""
        return dict(Counter(trouble.what for trouble in self.troubles if trouble.at >= since))


def sightings(acks: Iterable[Ack], diaries: Iterable[Diary]) -> list[Sighting]:
    """Every time that an epoch was told, in order of time."""
    told = [Sighting(ack.key, ack.epoch, ack.at) for ack in acks if ack.epoch]
    joined = [Sighting(diary.key, stretch.epoch, stretch.at) for diary in diaries for stretch in diary.stretches]
    return sorted([*told, *joined], key=lambda sighting: sighting.at)
