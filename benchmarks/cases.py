"""The workloads and their parameters. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["fanout", "rate", "rooms", "echo", "connect", "storm", "idle", "gate"]
Event: TypeAlias = Literal["plain", "windowed", "durable", "checked"]
"""`plain` is not stored, as with other servers; `windowed` is plain with a window of 5 ms; `durable` is stored; `checked` has a
schema."""
Unit: TypeAlias = Literal["delivery", "connection", "connection-second", "publish"]

PING = 25.0
"""Seconds between two pings of a server, unless the workload sets it."""
COMES_AND_GOES = 30.0
"""Seconds that the neighbour room runs longer than the measurement, if it is not ended before."""
SOURCES = 10
"""Number of source addresses; some kernels have too few ports for 15 000 connections from one address."""
TALK = (
    "The parcel left the depot in Ghent at 07:42 and should be with you before noon; the driver rings twice. "
    "If nobody is in, he leaves it with the neighbour at number 12, whom you named when you ordered. "
    "You can still move the delivery to another day in your account, or answer here and I will do it for you. "
)
"""Text that compresses like human text; a row of x does not."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement of a peer."""

    name: str
    kind: Kind
    connections: int
    rooms: int = 1
    seconds: float = 1.8
    """Length of the measured phase; 0 if the work ends by itself."""
    outstanding: int = 1
    rate: float = 0.0
    """Total events a second; for `rate`."""
    active: int = 0
    """Connections that publish; 0: the default of the kind."""
    slow: int = 0
    """Additional connections that stop reading."""
    beside: int = 0
    """Members of a neighbour room that always has an event in flight."""
    bytes: int = 128
    """Bytes of an event's data, without the overhead of the protocol."""
    talk: bool = False
    """Whether the data is human text instead of padding."""
    event: Event = "plain"
    deflate: bool = False
    ping: float = PING
    joins: bool = True
    """Whether a connection subscribes by message, if the peer needs that; otherwise it has joined with the 101."""
    ready: bool = False
    """Whether the address of Tidewire says `ready=1`, so that the subscription is live without a further message."""
    peers: tuple[str, ...] = ()
    """The workload's peers that run this case; empty: all."""

    def at_most(self, connections: int) -> Case:
        """Returns the case with fewer connections, and everything that depends on them reduced alike."""
        if self.connections <= connections:
            return self
        share = connections / self.connections
        return replace(
            self,
            connections=connections,
            rooms=max(1, round(self.rooms * share)),
            active=max(1, round(self.active * share)) if self.active else 0,
        )

    def neighbour(self) -> Case:
        """The neighbour room."""
        return Case("huge", "fanout", self.beside, seconds=self.seconds + COMES_AND_GOES)

    def label(self, workload: str) -> str:
        """The name for reports: the workload's name alone if it has one case."""
        return workload if self.name == workload else f"{workload} {self.name}"

    @property
    def everyone(self) -> int:
        """All connections, including slow ones."""
        return self.connections + self.slow

    @property
    def padding(self) -> int:
        """Number of characters for `%p` in the data."""
        return 0 if self.talk else max(0, self.bytes - _AROUND)

    def data(self) -> str:
        """The JSON data of an event, as a template of the job file: `%t` is the timestamp."""
        if not self.talk:
            return '{"t":%t,"p":"%p"}'
        room = self.bytes - _AROUND
        return '{"t":%t,"p":"' + (TALK * (room // len(TALK) + 1))[:room] + '"}'

    def lines(self) -> list[tuple[str, str]]:
        """The lines of the job file that are the same for all peers."""
        lines: list[tuple[str, object]] = [
            ("workload", self.kind),
            ("connections", self.everyone),
            ("rooms", self.rooms),
            ("sources", SOURCES),
            ("timeout", 60),
            ("gate", "yes"),
        ]
        if self.kind not in ("connect", "storm"):
            lines.append(("seconds", f"{self.seconds:g}"))
        if self.kind in ("fanout", "rate", "rooms", "echo"):
            lines += [("warmup", f"{min(0.3, self.seconds / 4):g}"), ("marker", '"t":')]
            lines.append(("padding", self.padding))
        if self.kind == "fanout":
            lines.append(("outstanding", self.outstanding))
        if self.kind == "rate":
            lines.append(("rate", f"{self.rate:g}"))
        if self.active:
            lines.append(("active", self.active))
        if self.slow:
            lines.append(("slow", self.slow))
        if self.deflate:
            lines.append(("deflate", "yes"))
        return [(key, str(value)) for key, value in lines]


_AROUND = len('{"t":,"p":""}') + 16


@dataclass(frozen=True, slots=True)
class Workload:
    """Cases that are compared, and their peers."""

    name: str
    title: str
    """Title in tables."""
    unit: Unit
    """The unit of which the cost is measured."""
    cases: tuple[Case, ...]
    peers: tuple[str, ...] = field(default=())
    """Empty: all."""
    often: tuple[str, ...] = ("limit", "tidewire")
    """Peers that a full run measures in each round, because a target needs their ratio. Others are measured once."""
    rounds: int | None = None
    """Maximum rounds in a full run; None: all."""


def _fan_out(name: str, **figures: object) -> Case:
    return replace(Case(name, "fanout", 1_000), **figures)  # type: ignore[arg-type]  # names are checked by `replace`


_TIDEWIRE = ("tidewire",)
_BESIDE_C = ("limit", "tidewire")
_KEEP_UP = ("limit", "tidewire", "uws", "ws", "socketio", "nchan", "centrifugo")
"""Peers that can sustain the rate."""
_FEW = 3
"""Rounds of workloads without a target, or with a clearly met one."""

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "fanout1",
            "1 000 members, one event under way",
            "delivery",
            (_fan_out("fanout1"),),
            often=("limit", "tidewire", "ws", "socketio", "nchan", "centrifugo"),
        ),
        Workload(
            "fanout16",
            "1 000 members, 16 events under way",
            "delivery",
            (_fan_out("fanout16", outstanding=16),),
            often=("limit", "tidewire", "uws", "ws"),
        ),
        Workload(
            "rate500",
            "1 000 members, 500 events a second; Tidewire with a window of 5 ms too",
            "delivery",
            (
                Case("rate500", "rate", 1_000, rate=500, seconds=5.0),
                Case("window", "rate", 1_000, rate=500, seconds=5.0, event="windowed", peers=_TIDEWIRE),
            ),
            _KEEP_UP,
            often=("tidewire", "uws"),
        ),
        Workload("rooms", "100 rooms of 10, all publish", "delivery", (Case("rooms", "rooms", 1_000, rooms=100),)),
        Workload(
            "rooms_redis",
            "the same with durable events, through Redis and without",
            "delivery",
            (Case("rooms_redis", "rooms", 1_000, rooms=100, event="durable"),),
            ("tidewire", "tidewire-redis"),
            often=("tidewire", "tidewire-redis"),
        ),
        Workload(
            "echo",
            "100 connections, each to itself",
            "delivery",
            (Case("echo", "echo", 100, rooms=100),),
        ),
        Workload(
            "idle",
            "10 000 idle connections, a ping every 5 s",
            "connection-second",
            # As long as the pings are apart: each connection is pinged once, whenever it came.
            (Case("idle", "idle", 10_000, rooms=1_000, seconds=5.0, ping=5.0),),
            often=_TIDEWIRE,
            rounds=_FEW,
        ),
        Workload(
            "connect",
            "2 000 connections come; Tidewire with `ready=1`, and without subscribing, too",
            "connection",
            (
                Case("connect", "connect", 2_000, rooms=200, seconds=0),
                Case("ready", "connect", 2_000, rooms=200, seconds=0, ready=True, peers=_TIDEWIRE),
                Case("upgrade", "connect", 2_000, rooms=200, seconds=0, joins=False, peers=_TIDEWIRE),
            ),
            often=("limit", "tidewire", "centrifugo"),
        ),
        Workload(
            "storm",
            "2 000 come back at once",
            "connection",
            (Case("storm", "storm", 2_000, rooms=200, seconds=0),),
            _KEEP_UP,
            often=("limit", "tidewire", "centrifugo"),
        ),
        Workload(
            "compressed",
            "fan-out of 1 KB of text, with permessage-deflate and without",
            "delivery",
            tuple(_fan_out(name, bytes=1_024, talk=True, deflate=name == "deflate") for name in ("plain", "deflate")),
            ("tidewire", "ws"),
            often=_TIDEWIRE,
        ),
        Workload(
            "validated",
            "the contract gate alone, with a JSON Schema for the data and without",
            "publish",
            tuple(
                Case(name, "gate", 0, seconds=0, event="checked" if name == "checked" else "plain")
                for name in ("unchecked", "checked")
            ),
            _TIDEWIRE,
        ),
        Workload(
            "active15k",
            "15 000 connections in rooms of 10, a tenth publishes",
            "delivery",
            (Case("active15k", "rate", 15_000, rooms=1_500, active=1_500, rate=1_500, seconds=3.0),),
            _BESIDE_C,
            rounds=_FEW,
        ),
        Workload(
            "fair",
            "100 members in rooms of 10, 50 events a second, beside a room of 4 000 that never rests and alone",
            "delivery",
            tuple(
                Case(name, "rate", 100, rooms=10, active=10, rate=50, seconds=3.0, beside=4_000 * (name == "beside"))
                for name in ("alone", "beside")
            ),
            _TIDEWIRE,
            rounds=_FEW,
        ),
        Workload(
            "slow",
            "1 000 members, 200 events of 1 KB a second, with a reader that stops and without",
            "delivery",
            tuple(
                Case(name, "rate", 1_000, rate=200, bytes=1_024, event="durable", seconds=3.0, slow=int(name == "with"))
                for name in ("without", "with")
            ),
            _TIDEWIRE,
            rounds=_FEW,
        ),
    )
}

QUICK = ("fanout1", "fanout16", "rate500", "rooms", "echo", "connect", "storm", "idle")
"""The workloads of `make bench-quick` and `--compare`."""


def quick(workload: Workload) -> Workload:
    """Returns a shorter workload that shows the effect of a change."""
    shrunk = {"idle": 2_000, "connect": 1_000, "storm": 1_000}
    seconds = {"rate500": 2.0, "idle": 0.5}  # of idling, only the memory is looked at: the pings would take longer
    cases = tuple(
        replace(
            case.at_most(shrunk.get(workload.name, case.connections)),
            seconds=seconds.get(workload.name, min(case.seconds, 1.5)),
        )
        for case in workload.cases
    )
    return replace(workload, cases=cases)
