"""The promise of docs/protocol.md: between two acknowledged positions a client sees every durable event of its channel once,
in order, or is told explicitly that it cannot.

Hypothesis drives clients that come, go, vanish, stop reading and lose acknowledgements against a running service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import event as tally
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.core.broker import ChannelInfo, DeliveredHead, EventSink, HistoryPage, PublishResult, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Event, Publication
from service.core.position import Position
from tests.support.examples import examples
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Running, serving, token
from tests.support.wire import Wire, connect

pytestmark = pytest.mark.slow

CONTRACT = Path(__file__).parent / "promise.yaml"
KEPT = 6
"""Durable events in a stream: `history.events` of that contract."""
CHANNELS = ("room:1", "hall:1")
TENANTS = {"default": API_KEY, "other": OTHER_API_KEY}
PEOPLE = (("ann", "default"), ("ben", "default"), ("cat", "default"), ("ann", "other"), ("dan", "other"))
PLENTY = {"per_second": 1e6, "burst": 10**6}
ROUNDS = 20
"""Times that a client may come back before everything has reached it at the end."""

T = TypeVar("T")

# --- the service's side -------------------------------------------------------------------------------------------------


class Hesitant:
    """A broker that keeps the port's guarantee and takes its time, as one across a network does.

    What the memory broker does at one moment is here done at once and answered later, or done later: between the two
    anything else may happen. What it delivers may be late, or be lost until it says that it was interrupted.
    """

    delivers_synchronously = False

    def __init__(self) -> None:
        self.before = 0
        self.after = 0
        self.losing = False
        self._late_events: list[Event] | None = None
        self._sink: EventSink | None = None
        self._broker = MemoryBroker(
            SystemClock(), idempotency_window=300, idempotency_entries=10_000, channels=100, max_bytes=10_000_000
        )

    async def _late(self, call: Callable[[], Awaitable[T]]) -> T:
        for _ in range(self.before):
            await asyncio.sleep(0)
        answer = await call()
        for _ in range(self.after):
            await asyncio.sleep(0)
        return answer

    async def start(self, sink: EventSink) -> None:
        self._sink = sink
        await self._broker.start(self)

    def deliver(self, event: Event) -> None:
        assert self._sink is not None
        if event.channel.tenant and self.losing:
            return
        if self._late_events is not None:
            self._late_events.append(event)
        else:
            self._sink.deliver(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        assert self._sink is not None
        self._sink.interrupted(channels)

    def mend(self) -> None:
        """Delivers again, and says so."""
        self.losing = False
        self.hurry()
        self.interrupted()

    def dawdle(self) -> None:
        """Holds up what it delivers."""
        if self._late_events is None:
            self._late_events = []

    def hurry(self) -> None:
        """Delivers what it has held up, in order."""
        late, self._late_events = self._late_events or [], None
        for event in late:
            self.deliver(event)

    async def close(self) -> None:
        await self._broker.close()

    async def check(self) -> None:
        await self._broker.check()

    def start_publish(self, publication: Publication) -> None:
        pass

    async def publish(self, publication: Publication) -> PublishResult:
        return await self._late(lambda: self._broker.publish(publication))

    async def subscribe(self, channel: ChannelKey) -> None:
        await self._late(lambda: self._broker.subscribe(channel))

    async def unsubscribe(self, channel: ChannelKey) -> None:
        await self._late(lambda: self._broker.unsubscribe(channel))

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        return await self._late(lambda: self._broker.snapshot(channel, since, max_events, max_bytes, tail))

    async def stream_heads(
        self, channels: Sequence[ChannelKey], known: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        return await self._late(lambda: self._broker.stream_heads(channels, known))

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        return await self._late(lambda: self._broker.history(channel, after, before, limit))

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        return await self._late(lambda: self._broker.removed_values(channel, after))

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        return await self._late(lambda: self._broker.list_channels(tenant, prefix, limit, after))

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        return await self._late(lambda: self._broker.remove_events(channel, events))

    async def purge(self, channel: ChannelKey) -> Position | None:
        return await self._late(lambda: self._broker.purge(channel))


# --- what is known of the streams ---------------------------------------------------------------------------------------


@dataclass
class Stream:
    """One tenant's channel, as acknowledgements tell of it."""

    epoch: str | None = None
    events: dict[int, tuple[str, Any]] = field(default_factory=dict)
    """offset → (id, data)"""
    offsets: dict[str, int] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    """Ids that were acknowledged as new."""
    moods: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """key → (rev, data) of the latest events"""

    @property
    def top(self) -> int:
        """The greatest offset that was acknowledged."""
        return max(self.events, default=0)

    def acknowledged(self, id: str, data: Any, offset: int, *, duplicate: bool) -> None:
        assert duplicate or id not in self.accepted, f"{id} was accepted twice"
        if not duplicate:  # the answer to a repetition may overtake the one to the first attempt, or come alone
            self.accepted.add(id)
        known = self.offsets.get(id)
        if known is not None:
            assert offset == known, f"{id} was acknowledged at {known}, now at {offset}"
            return
        assert offset not in self.events, f"offset {offset} was given to {self.events[offset][0]} and to {id}"
        self.events[offset] = (id, data)
        self.offsets[id] = offset

    def met(self, epoch: str) -> None:
        assert self.epoch in (None, epoch), "the stream started anew, although nothing was lost"
        self.epoch = epoch


class World:
    """What the clients share with the machine."""

    def __init__(self) -> None:
        self.streams = {(tenant, channel): Stream() for tenant in TENANTS for channel in CHANNELS}
        self.serial = 0
        """Number of the newest publish."""
        self.behind = False
        """Whether deliveries are late or lost just now, or were and have not been read since."""
        self.told = asyncio.Event()
        """Set whenever a client or the backend has learned something."""


# --- a client that follows the rule -------------------------------------------------------------------------------------


@dataclass
class Log:
    """What a client has applied since it was last told where it stands: dense from `base` on."""

    base: int
    events: list[tuple[int, str, Any]] = field(default_factory=list)
    since_serial: int | None = None
    """Whatever was published with a greater serial number must be in it."""


@dataclass
class Place:
    """A client in a channel."""

    request: str | None = None
    """The subscribe that has not been answered."""
    since: dict[str, Any] | None = None
    """What that subscribe gave."""
    held: bool = False
    """Whether it was sent before `ready`."""
    floor: int = 0
    """What had been acknowledged before that subscribe."""
    joined_at: int | None = None
    """The serial number of the newest publish when the service was known to have joined the client."""
    live: bool = False
    ahead: bool = False
    """Whether it joined while deliveries were late or lost, so that its snapshot was ahead of the room."""
    epoch: str = ""
    position: int = 0
    last: str | None = None
    logs: list[Log] = field(default_factory=list)
    moods: dict[str, tuple[int, Any]] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        return self.request is None and not self.live

    def resume(self) -> dict[str, Any] | None:
        """`since`, if there is a position."""
        if not self.logs:
            return None
        return {"epoch": self.epoch, "offset": self.position, **({"id": self.last} if self.last is not None else {})}


@dataclass
class Sent:
    """A publish that its sender may repeat."""

    id: str
    channel: str
    data: Any


class Person:
    """A user's only client. It keeps its positions across connections and follows the client rule."""

    def __init__(self, user: str, tenant: str, world: World) -> None:
        self.user = user
        self.tenant = tenant
        self.wire: Wire | None = None
        self.ready = False
        self.places = {channel: Place() for channel in CHANNELS}
        self.unacknowledged: dict[str, Sent] = {}
        self.acknowledged: list[Sent] = []
        self.repaired = 0
        """Events that the rule had to drop, and gaps it had to mend: none where one node carries everything."""
        self.resumed = 0
        self.gaps = 0
        """Times the service said recovered:false."""
        self.announced = 0
        """Those of them that it said in place."""
        self.slow = 0
        self.faults: list[Exception] = []
        self._token = token(user, grants=["room:*"], tenant=tenant)
        self._world = world
        self._serial = 0
        self._pings: dict[str, Callable[[], None]] = {}

    @property
    def is_connected(self) -> bool:
        return self.wire is not None and self.wire.is_open

    def stream(self, channel: str) -> Stream:
        return self._world.streams[self.tenant, channel]

    # --- connecting

    async def connect(self, server: Running, *, ready: bool) -> None:
        port = int(server.url.rpartition(":")[2])
        self.wire = await connect(port, self._text, self._gone, bearer=self._token, receive_buffer=4096)
        self.ready = ready
        if ready:
            self.wire.send({"type": "ready"})

    def say_ready(self) -> None:
        if self.wire is not None and not self.ready:
            self.ready = True
            self.wire.send({"type": "ready"})

    def _gone(self, code: int) -> None:
        self.slow += code == 4450
        self.ready = False
        for place in self.places.values():
            place.live = False
            place.request = None
        self._pings.clear()
        self._world.told.set()

    # --- asking

    def subscribe(self, channel: str, *, resume: bool) -> None:
        place = self.places[channel]
        if self.wire is None or not place.is_idle:
            return
        place.since = place.resume() if resume else None
        place.request = self._next_id("s")
        place.held, place.joined_at = not self.ready, None
        place.floor = self.stream(channel).top
        since = {} if place.since is None else {"since": place.since}
        self.wire.send({"type": "subscribe", "id": place.request, "channel": channel, **since})
        if place.held:
            self._note_join(place, place.request)

    def _note_join(self, place: Place, request: str) -> None:
        """A pong proves that the subscribe before it has been handled: nothing published from then on may be missing."""

        def joined() -> None:
            if place.request == request:
                place.joined_at = self._world.serial

        self._ping(joined)

    def _ping(self, then: Callable[[], None]) -> None:
        assert self.wire is not None
        name = self._next_id("p")
        self._pings[name] = then
        self.wire.send({"type": "ping", "id": name})

    def unsubscribe(self, channel: str) -> None:
        place = self.places[channel]
        if self.wire is not None and place.live:
            place.live = False
            place.request = self._next_id("u")
            self.wire.send({"type": "unsubscribe", "id": place.request, "channel": channel})

    def publish(self, sent: Sent) -> None:
        if self.wire is not None:
            self.wire.send({"type": "talk.line", "id": sent.id, "channel": sent.channel, "data": sent.data})

    def _next_id(self, kind: str) -> str:
        self._serial += 1
        return f"{kind}{self._serial}"

    # --- being told

    def _text(self, frame: bytes) -> None:
        try:
            for tenant in TENANTS:
                assert tenant == self.tenant or f"of-{tenant}".encode() not in frame, "another tenant's event"
            content = json.loads(frame)
            for message in content if isinstance(content, list) else [content]:
                self._message(message)
        except Exception as fault:  # asyncio would only log it; the machine raises it
            self.faults.append(fault)
        self._world.told.set()

    def _message(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if "." in kind:
            self._event(kind, message)
        else:
            handlers: dict[str, Callable[[dict[str, Any]], None]] = {
                "welcome": lambda _: None,
                "subscribed": self._subscribed,
                "unsubscribed": self._unsubscribed,
                "error": self._refused,
                "ack": self._ack,
                "pong": lambda pong: self._pings.pop(pong["id"])(),
            }
            assert kind in handlers, message
            handlers[kind](message)

    def _ack(self, ack: dict[str, Any]) -> None:
        sent = self.unacknowledged.pop(ack["id"], None) or next(s for s in self.acknowledged if s.id == ack["id"])
        self.stream(sent.channel).acknowledged(sent.id, sent.data, ack["offset"], duplicate=ack.get("duplicate", False))
        if sent not in self.acknowledged:
            self.acknowledged.append(sent)

    def _unsubscribed(self, message: dict[str, Any]) -> None:
        place = self.places[message["channel"]]
        if message["code"] == "removed":
            assert place.live or place.request is not None, "removed from where it is not"
            if place.request is not None and place.request.startswith("s"):
                place.request = None  # it will not be answered any more
        else:
            assert (message["code"], message["id"]) == ("requested", place.request)
            place.request = None
        place.live = False

    def _refused(self, error: dict[str, Any]) -> None:
        """The only refusal there may be: the backend has removed it just before it left."""
        place = next(place for place in self.places.values() if place.request == error["id"])
        assert (error["code"], error["id"][0]) == ("not_subscribed", "u"), error
        place.request = None

    def _subscribed(self, message: dict[str, Any]) -> None:
        place = self.places[message["channel"]]
        if message["id"] is None:
            self._started_anew(place, message)
            return
        assert message["id"] == place.request
        self.stream(message["channel"]).met(message["epoch"])
        missed = [(event["offset"], event["id"], event["data"]) for event in message["events"]]
        if place.since is not None:
            self._resumed(place, message)
        else:
            base = missed[0][0] - 1 if missed else message["offset"]
            assert message.get("recovered") is not False or (place.held and not missed)
            assert base >= place.floor, "a snapshot from before the subscribe"
            place.logs.append(Log(base, since_serial=None if message.get("recovered") is False else place.joined_at))
            place.position = base
        if message.get("recovered") is False:
            assert not missed
            self.gaps += 1
            place.logs.append(Log(message["offset"]))
            place.position = message["offset"]
        for offset, id, data in missed:
            assert offset == place.position + 1, "a hole in what was missed"
            self._apply(place, offset, id, data)
        assert place.position == message["offset"]
        assert not missed or missed[-1][1] == message["last"]
        place.epoch, place.last = message["epoch"], message.get("last")
        place.moods = {event["key"]: (event["rev"], event["data"]) for event in message["state"]}
        place.request, place.live, place.ahead = None, True, self._world.behind

    def _started_anew(self, place: Place, message: dict[str, Any]) -> None:
        """More was lost on the way to the node than the stream still has: all are told, but not those who lack nothing."""
        assert message["recovered"] is False
        if not place.live:
            return  # it is leaving
        top = message["offset"]
        # Whoever joined ahead of the room may be told too, although the stream reaches back to where it stands.
        assert place.ahead or max(place.position, 1) <= top - KEPT, f"a false alarm from {place.position} to {top}"
        self.gaps += 1
        self.announced += 1
        place.logs.append(Log(top))
        place.position, place.last = top, message["last"]
        place.moods = {event["key"]: (event["rev"], event["data"]) for event in message["state"]}

    def _resumed(self, place: Place, message: dict[str, Any]) -> None:
        """Recovered if the stream still had the event at the position, and only then: neither false alarm nor silence."""
        top, since = message["offset"], place.position
        is_there = since == top or max(since, 1) > top - KEPT
        assert message["recovered"] is is_there, f"from {since} to {top}: recovered {message['recovered']}"
        self.resumed += is_there

    def _event(self, kind: str, event: dict[str, Any]) -> None:
        place = self.places[event["channel"]]
        assert place.live or place.request is not None, "an event of a channel that was left"
        assert place.live or (place.request or "").startswith("u"), "an event before its subscribed"
        if kind == "talk.line":
            self._line(event["channel"], place, event)
        elif kind == "talk.mood":
            assert "offset" not in event
            rev, _ = place.moods.get(event["key"], (0, None))
            if event["rev"] > rev:
                place.moods[event["key"]] = (event["rev"], event["data"])
        else:
            assert "offset" not in event

    def _line(self, channel: str, place: Place, event: dict[str, Any]) -> None:
        if not place.live:
            return  # it is leaving, and takes up again where it stopped
        if event["offset"] <= place.position:
            self.repaired += 1
        elif event["offset"] == place.position + 1:
            self._apply(place, event["offset"], event["id"], event["data"])
        else:
            self.repaired += 1
            self.unsubscribe(channel)

    @staticmethod
    def _apply(place: Place, offset: int, id: str, data: Any) -> None:
        place.logs[-1].events.append((offset, id, data))
        place.position, place.last = offset, id


# --- the machine --------------------------------------------------------------------------------------------------------

people = st.integers(0, len(PEOPLE) - 1)
channels = st.sampled_from(CHANNELS)
tenants = st.sampled_from(sorted(TENANTS))
turns = st.sampled_from([0, 0, 1, 2, 5, 20])
hesitations = st.sampled_from([0, 1, 3, 10, 30])
which = st.integers(0, 99)
"""Of things whose number depends on the service; drawing from them would make an example impossible to repeat."""
sizes = st.sampled_from([0, 0, 10, 4000])


class PromiseMachine(RuleBasedStateMachine):
    """Nothing is waited for between two rules but a few turns of the loop, so what they begin goes on at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.broker = Hesitant()
        self.world = World()
        self.people: list[Person] = []
        self.posts: set[asyncio.Task[None]] = set()
        self.posted: list[tuple[str, str, dict[str, Any]]] = []
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.server = await self.stack.enter_async_context(
            serving(
                contract=CONTRACT,
                broker=self.broker,
                limits={"connection_rate": PLENTY, "user_rate": PLENTY, "connect_rate_per_ip": PLENTY},
                outbox={"bytes": 12_288, "send_buffer": 4096, "close_grace": 0.05},
                deadlines={"presence_leave": 0.01},
                log={"level": "error"},
            )
        )
        self.people = [Person(user, tenant, self.world) for user, tenant in PEOPLE]

    def run(self, turns: int, coroutine: Coroutine[Any, Any, None] | None = None) -> None:
        async def steps() -> None:
            if coroutine is not None:
                await coroutine
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(steps())

    def teardown(self) -> None:
        try:
            self.runner.run(self._settle())
            self._check_all()
            for outcome in (
                "resumed",
                "gaps",
                "announced",
                "slow",
            ):  # for --hypothesis-show-statistics: whether all of it occurs
                if any(getattr(person, outcome) for person in self.people):
                    tally(outcome)
        finally:
            self.runner.run(self._stop())
            self.runner.close()

    async def _stop(self) -> None:
        for person in self.people:
            if person.wire is not None:
                person.wire.abort()
        await asyncio.gather(*self.posts)
        await self.stack.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    # --- what happens ---------------------------------------------------------------------------------------------------

    @initialize()
    def everyone_comes(self) -> None:
        for person in self.people:
            self.run(0, person.connect(self.server, ready=True))
            for channel in CHANNELS:
                person.subscribe(channel, resume=False)

    @rule(before=hesitations, after=hesitations)
    def the_broker_takes_its_time(self, before: int, after: int) -> None:
        self.broker.before, self.broker.after = before, after

    @rule(losing=st.booleans(), turns=turns)
    def deliveries_are_lost_for_a_while(self, losing: bool, turns: int) -> None:
        async def change() -> None:
            if losing:
                self.broker.losing = self.world.behind = True
            elif self.broker.losing:
                self.broker.mend()

        self.run(turns, change())

    @rule(late=st.booleans(), turns=turns)
    def deliveries_are_late_for_a_while(self, late: bool, turns: int) -> None:
        async def change() -> None:
            if late:
                self.broker.dawdle()
                self.world.behind = True
            else:
                self.broker.hurry()

        self.run(turns, change())

    @rule(who=people, ready=st.booleans(), again=st.sampled_from([(), CHANNELS[:1], CHANNELS]), turns=turns)
    def come(self, who: int, ready: bool, again: Sequence[str], turns: int) -> None:
        person = self.people[who]
        if not person.is_connected:
            self.run(0, person.connect(self.server, ready=ready))
            for channel in again:
                person.subscribe(channel, resume=True)
            self.run(turns)

    @rule(who=people, turns=turns)
    def be_ready_late(self, who: int, turns: int) -> None:
        self.people[who].say_ready()
        self.run(turns)

    @rule(who=people, turns=turns)
    def vanish(self, who: int, turns: int) -> None:
        wire = self.people[who].wire
        if wire is not None:
            wire.abort()
        self.run(turns)

    @rule(who=people, channel=channels, resume=st.booleans(), turns=turns)
    def subscribe(self, who: int, channel: str, resume: bool, turns: int) -> None:
        if self.people[who].is_connected:
            self.people[who].subscribe(channel, resume=resume)
        self.run(turns)

    @rule(who=people, channel=channels, turns=turns)
    def unsubscribe(self, who: int, channel: str, turns: int) -> None:
        self.people[who].unsubscribe(channel)
        self.run(turns)

    @rule(who=people, on=st.booleans(), turns=turns)
    def stop_or_resume_reading(self, who: int, on: bool, turns: int) -> None:
        wire = self.people[who].wire
        if wire is not None:
            wire.read(on)
        self.run(turns)

    @rule(who=people, channel=channels, count=st.integers(1, 3), size=sizes, lost=st.booleans(), turns=turns)
    def publish(self, who: int, channel: str, count: int, size: int, lost: bool, turns: int) -> None:
        """`lost`: the sender vanishes before it can hear the ack, and cannot know whether the event was accepted."""
        person = self.people[who]
        for _ in range(count):
            sent = Sent(self._id(), channel, self._data(person.tenant, size))
            person.unacknowledged[sent.id] = sent
            person.publish(sent)
        self.run(turns)
        if lost and person.wire is not None:
            person.wire.abort()

    @rule(who=people, which=which, turns=turns)
    def publish_again(self, who: int, which: int, turns: int) -> None:
        """Those whose ack has not come, or one whose ack is taken for lost."""
        person = self.people[who]
        for sent in list(person.unacknowledged.values()):
            person.publish(sent)
        if person.acknowledged:
            person.publish(person.acknowledged[which % len(person.acknowledged)])
        self.run(turns)

    @rule(who=people, channel=channels, turns=turns)
    def type_something(self, who: int, channel: str, turns: int) -> None:
        person = self.people[who]
        if person.wire is not None:
            text = self._data(person.tenant, 0)
            person.wire.send({"type": "talk.typing", "channel": channel, "data": text})
        self.run(turns)

    @rule(tenant=tenants, channel=channels, count=st.sampled_from([1, 2, KEPT + 2]), size=sizes, turns=turns)
    def post(self, tenant: str, channel: str, count: int, size: int, turns: int) -> None:
        """The backend publishes; more at once than the stream keeps makes resuming impossible for whoever is away."""
        for _ in range(count):
            event = {"type": "talk.line", "id": self._id(), "data": self._data(tenant, size)}
            self.posted.append((tenant, channel, event))
        self._post(self.posted[-count:])
        self.run(turns)

    @rule(who=people, channel=channels, count=st.sampled_from([1, KEPT - 1, KEPT, KEPT + 1]), turns=turns)
    def be_away_for_a_while(self, who: int, channel: str, count: int, turns: int) -> None:
        """What comes meanwhile is just or just not in the stream any more; coming back may overlap with it."""
        self.vanish(who, 1)
        self.post(self.people[who].tenant, channel, count, 0, turns)
        self.come(who, True, CHANNELS, turns)

    @rule(who=people, channel=channels, resume=st.booleans(), before=st.integers(0, 20), after=hesitations, turns=turns)
    def join_amid_events(self, who: int, channel: str, resume: bool, before: int, after: int, turns: int) -> None:
        """The snapshot is read while events come in, before and behind it."""
        self.the_broker_takes_its_time(0, after)
        self.unsubscribe(who, channel, 20)
        self.post(self.people[who].tenant, channel, 2, 0, before)
        self.subscribe(who, channel, resume, 2)
        for _ in range(3):
            self.post(self.people[who].tenant, channel, 1, 0, turns)

    @rule(who=people, channel=channels, resume=st.booleans(), count=st.integers(1, 2), turns=turns)
    def come_unprepared(self, who: int, channel: str, resume: bool, count: int, turns: int) -> None:
        """Joined, but not ready: what comes meanwhile is owed, and without a position what came before is not."""
        self.the_broker_takes_its_time(0, 0)
        self.vanish(who, 1)
        self.come(who, False, (), 0)
        self.subscribe(who, channel, resume, 60)
        self.post(self.people[who].tenant, channel, count, 0, 60)
        self.be_ready_late(who, turns)

    @rule(tenant=tenants, channel=channels, between=turns, after=hesitations, turns=turns)
    def change_places(self, tenant: str, channel: str, between: int, after: int, turns: int) -> None:
        """The last one leaves a channel while the next one joins it."""
        numbers = [number for number, person in enumerate(self.people) if person.tenant == tenant]
        self.the_broker_takes_its_time(0, 0)
        for number in numbers:
            self.unsubscribe(number, channel, 0)
        self.run(40)
        self.subscribe(numbers[0], channel, True, 40)
        self.the_broker_takes_its_time(0, after)
        self.unsubscribe(numbers[0], channel, 2)
        self.subscribe(numbers[1], channel, True, between)
        self.post(tenant, channel, 1, 0, turns)

    @rule(who=people, channel=channels, turns=turns)
    def remove(self, who: int, channel: str, turns: int) -> None:
        """The backend ends a user's subscription, whatever the user is doing."""
        person = self.people[who]

        async def remove() -> None:
            url = f"{self.server.url}/api/v1/users/{person.user}/unsubscribe"
            headers = {"Authorization": f"Bearer {TENANTS[person.tenant]}"}
            async with self.server.http.post(url, json={"channel": channel}, headers=headers) as response:
                assert response.status == 200

        self._begin(remove())
        self.run(turns)

    @rule(who=people, channel=channels)
    def stop_reading_for_too_much(self, who: int, channel: str) -> None:
        """More than the outbox and the kernel hold."""
        self.stop_or_resume_reading(who, False, 0)
        for _ in range(3):
            self.post(self.people[who].tenant, channel, KEPT, 4000, 20)

    @rule(which=which, turns=turns)
    def post_again(self, which: int, turns: int) -> None:
        if self.posted:
            self._post([self.posted[which % len(self.posted)]])
        self.run(turns)

    @rule(tenant=tenants, channel=channels, who=st.sampled_from(["ann", "ben"]), turns=turns)
    def change_mood(self, tenant: str, channel: str, who: str, turns: int) -> None:
        mood = {"who": who, "mood": self._data(tenant, 0)}
        self._post([(tenant, channel, {"type": "talk.mood", "id": self._id(), "data": mood})])
        self.run(turns)

    @rule()
    def let_everything_arrive(self) -> None:
        self.runner.run(self._settle())
        self._check_all()
        self.world.behind = False

    # --- what must hold -------------------------------------------------------------------------------------------------

    @invariant()
    def nobody_was_told_anything_impossible(self) -> None:
        for person in self.people:
            for fault in person.faults:
                raise fault
            assert person.repaired == 0, "one node delivers in order, without holes and repetitions"

    @invariant()
    def logs_are_dense_and_agree_with_what_was_acknowledged(self) -> None:
        for person, channel, place in self._places():
            stream = person.stream(channel)
            for log in place.logs:
                offsets = [offset for offset, _, _ in log.events]
                assert offsets == list(range(log.base + 1, log.base + 1 + len(offsets)))
                for offset, id, data in log.events:
                    assert stream.events.get(offset, (id, data)) == (id, data)

    def _check_all(self) -> None:
        """Once nothing is under way: everybody has everything, and all of it was acknowledged."""
        self.nobody_was_told_anything_impossible()
        self.logs_are_dense_and_agree_with_what_was_acknowledged()
        for stream in self.world.streams.values():
            assert sorted(stream.events) == list(range(1, stream.top + 1)), "offsets are dense"
        for person, channel, place in self._places():
            stream = person.stream(channel)
            assert place.position == stream.top
            assert place.moods == stream.moods
            for log in place.logs:
                assert all(stream.events[offset] == (id, data) for offset, id, data in log.events)
                if log.since_serial is not None:
                    later = [offset for id, offset in stream.offsets.items() if int(id[1:]) > log.since_serial]
                    assert all(offset > log.base for offset in later), "missing since its join"

    # --- the rest -------------------------------------------------------------------------------------------------------

    def _places(self) -> list[tuple[Person, str, Place]]:
        return [(person, channel, place) for person in self.people for channel, place in person.places.items()]

    def _id(self) -> str:
        self.world.serial += 1
        return f"e{self.world.serial}"

    def _data(self, tenant: str, size: int) -> str:
        return f"of-{tenant} {self.world.serial} " + "x" * size

    def _post(self, events: list[tuple[str, str, dict[str, Any]]]) -> None:
        async def post() -> None:
            tenant, channel, _ = events[0]
            stream = self.world.streams[tenant, channel]
            bodies = [event for _, _, event in events]
            answer = await self.server.publish(channel, bodies, key=TENANTS[tenant])
            for event, result in zip(bodies, answer["results"], strict=True):
                stream.met(result["epoch"])
                if "rev" in result:
                    rev, _ = stream.moods.get(event["data"]["who"], (0, None))
                    if result["rev"] > rev:
                        stream.moods[event["data"]["who"]] = (result["rev"], event["data"])
                else:
                    stream.acknowledged(event["id"], event["data"], result["offset"], duplicate=result["duplicate"])
            self.world.told.set()

        self._begin(post())

    def _begin(self, call: Coroutine[Any, Any, None]) -> None:
        async def begin() -> None:
            self.posts.add(asyncio.create_task(call))

        self.runner.run(begin())

    async def _settle(self) -> None:
        """Everybody comes back, resumes, and repeats what was not acknowledged, until nothing is missing."""
        self.broker.before = self.broker.after = 0
        self.broker.mend()
        async with asyncio.timeout(DEADLINE * 4):
            await asyncio.gather(*self.posts)
            self.posts.clear()
            for person in self.people:
                await self._settle_one(person)
            # Those who were settled first may have missed what the later ones published.
            while not all(self._has_everything(person) for person in self.people):
                self._raise_faults()
                self.world.told.clear()
                for person in self.people:
                    await self._come_back(person)
                await self.world.told.wait()

    async def _settle_one(self, person: Person) -> None:
        if person.wire is not None:
            person.wire.read(True)
        await self._come_back(person)
        for sent in person.unacknowledged.values():
            person.publish(sent)

    async def _come_back(self, person: Person) -> None:
        if not person.is_connected:
            await person.connect(self.server, ready=True)
            for sent in person.unacknowledged.values():
                person.publish(sent)
        person.say_ready()
        for channel in CHANNELS:
            person.subscribe(channel, resume=True)

    def _has_everything(self, person: Person) -> bool:
        return not person.unacknowledged and all(
            place.live and place.position == person.stream(channel).top and place.moods == person.stream(channel).moods
            for channel, place in person.places.items()
        )

    def _raise_faults(self) -> None:
        for person in self.people:
            for fault in person.faults:
                raise fault


async def _subscribing(server: Running, user: str) -> None:
    """Returns once the service has begun to join the user to hall:1."""
    async with asyncio.timeout(DEADLINE):
        session = server.service.node.streams.registry.of_user("default", user)[0].session
        while not session.is_subscribed("hall:1"):  # noqa: ASYNC110  # the service has no event for it
            await asyncio.sleep(0)


async def test_backend_unsubscribe_during_a_join_wins() -> None:
    broker = Hesitant()
    async with serving(contract=CONTRACT, broker=broker) as server, server.client("ann") as ann:
        async with server.client("ben") as ben:
            await ann.silence()
            await ben.silence()
            broker.before = 1000
            await ben.send(type="subscribe", id="s", channel="hall:1")
            await _subscribing(server, "ben")
            await ann.send(type="subscribe", id="s", channel="hall:1")  # waits for ben's join
            await _subscribing(server, "ann")
            assert await server.service.node.cluster.actions.unsubscribe("default", "ann", "hall:1") == 1
            await ann.expect("unsubscribed", channel="hall:1", code="removed")
            await ben.expect("subscribed", id="s")
            await server.publish("hall:1", {"type": "talk.line", "data": 1})
            await ben.expect("talk.line")
            await ann.silence()
            assert (await ben.ask("unsubscribe", channel="hall:1"))["code"] == "requested"
        assert not list(server.service.node.streams.hub.rooms())


async def test_backend_unsubscribe_is_sent_before_later_replies() -> None:
    broker = Hesitant()
    async with serving(contract=CONTRACT, broker=broker) as server, server.client("ann") as ann:
        await ann.subscribe("hall:1")
        broker.before = 1000
        async with asyncio.TaskGroup() as group:
            group.create_task(server.service.node.cluster.actions.unsubscribe("default", "ann", "hall:1"))
            await ann.send(type="unsubscribe", id="u", channel="hall:1")
        await ann.expect("unsubscribed", channel="hall:1", code="removed")
        await ann.expect("error", id="u", code="not_subscribed")


TestPromise = PromiseMachine.TestCase
TestPromise.settings = settings(
    max_examples=examples(50),
    stateful_step_count=40,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # what depends on timing cannot be made smaller by trying again
    suppress_health_check=[HealthCheck.too_slow],
)
