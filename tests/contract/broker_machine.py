"""Compares a Broker with a model that remembers everything; Hypothesis chooses the calls.

The promise under test: a client that resumes never loses, repeats or reorders a durable event unless it is told `recovered` is
False; and it is told so only when the stream can no longer show that there is no gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.core.broker import Broker, PublishResult
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from tests.support.clock import FakeClock
from tests.support.examples import examples

T = TypeVar("T")

KEYS = [ChannelKey(tenant, name) for tenant in ("acme", "other") for name in ("room:1", "room:2")]
RETENTION = Retention(entries=5, ttl=30.0)
VALUE_TTL = 15.0
WINDOW = 100.0
MAX_EVENTS = 4
"""Events that one resume may recover: fewer than a stream keeps, so that all three outcomes occur."""

MACHINE_SETTINGS = settings(
    max_examples=examples(40), stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

channels = st.sampled_from(KEYS)


@dataclass
class Kept:
    """A durable event of the model."""

    id: str
    data: bytes
    at: float


@dataclass
class Value:
    """A value of the model's state."""

    id: str
    at: float
    version: int
    ttl: float
    """Seconds; that of the retention unless the value has its own."""


@dataclass
class ModelChannel:
    """Everything in one epoch of a channel, and a client that subscribes and leaves."""

    epoch: str | None = None
    events: list[Kept] = field(default_factory=list)
    state: dict[str, Value] = field(default_factory=dict)
    """The newest last."""
    state_version: int = 0
    subscribed: bool = False
    seen: list[Position] = field(default_factory=list)
    """Positions that a client may have, of this epoch and earlier ones."""
    applied: Position | None = None
    """The client's position; None before its first subscribe."""

    def position(self, offset: int) -> Position:
        assert self.epoch is not None
        return Position(self.epoch, offset, self.events[offset - 1].id if offset else None)

    def first(self, now: float) -> int:
        """Returns the offset of the oldest event within the retention."""
        top = len(self.events)
        kept = [n for n in range(1, top + 1) if n > top - RETENTION.entries and self._alive(self.events[n - 1].at, now)]
        return kept[0] if kept else top + 1

    def check_values(self, found: list[str], now: float) -> None:
        """Checks the ids of a state. A value that has ended may still count for the retention, or not any more."""
        values = list(self.state.values())
        alive = [value for value in values if value.at + value.ttl > now]
        certain = [value.id for value in values[-RETENTION.entries :] if value in alive]
        possible = [value.id for value in alive[-RETENTION.entries :]]
        assert found == [id for id in possible if id in found]
        assert set(certain) <= set(found)

    def missed(self, since: Position, now: float) -> list[str] | None:
        """Returns what a resume from `since` must recover; None if it must not."""
        top = len(self.events)
        if since.epoch != self.epoch or since.offset > top or self.position(since.offset) != since:
            return None
        if since.offset == top:
            return []
        # The entry at `since` itself must be there to be compared; offset 0 has none.
        if max(since.offset, 1) < self.first(now) or top - since.offset > MAX_EVENTS:
            return None
        return [event.id for event in self.events[since.offset :]]

    @staticmethod
    def _alive(at: float, now: float) -> bool:
        return at + RETENTION.ttl > now


class BrokerMachine(RuleBasedStateMachine):
    """One subclass for each implementation, whose `open` returns a broker. Tests run `SubClass.TestCase`."""

    may_forget: ClassVar[bool] = False
    """Whether a channel without subscribers may be evicted, and return with a new epoch."""
    may_forget_empty: ClassVar[bool] = False
    """The same for an empty channel."""
    may_refuse: ClassVar[bool] = False
    """Whether calls may raise BROKER_UNAVAILABLE because the broker is full."""
    may_be_set_back: ClassVar[bool] = False
    """Whether a position ahead of the stream starts a new epoch."""
    most_subscribed: ClassVar[int] = len(KEYS)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.model = {key: ModelChannel() for key in KEYS}
        self.results: dict[tuple[ChannelKey, str], tuple[PublishResult, Publication, float]] = {}
        self.refused: list[Publication] = []
        self.published = 0
        self.delivered: list[Event] = []
        self.expected: list[tuple[ChannelKey, str, int | None]] = []
        self.epochs: dict[str, ChannelKey] = {}
        self.broker = self.run(self.open(self.clock))
        self.run(self.broker.start(self))

    async def open(self, clock: FakeClock) -> Broker:
        """Returns a broker before `start`, with an idempotency window of WINDOW seconds."""
        raise NotImplementedError

    def deliver(self, event: Event) -> None:
        """Records an event: the machine is the broker's sink."""
        self.delivered.append(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Fails: nothing is lost here."""
        raise AssertionError("interrupted")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def attempt(self, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """Returns the result of a call; None if the broker is full, where that is allowed."""
        try:
            return self.run(coroutine)
        except ServiceError as error:
            if self.may_refuse and error.code is ErrorCode.BROKER_UNAVAILABLE:
                return None
            raise

    def teardown(self) -> None:
        self.run(self.broker.close())
        self.runner.close()
        assert self.clock.pending == 0

    # --- what happens -------------------------------------------------------------------------------------------------

    @rule(channel=channels, size=st.integers(0, 40))
    def publish_durable(self, channel: ChannelKey, size: int) -> None:
        self._publish(self._publication(channel, Delivery.DURABLE, b'"' + b"x" * size + b'"'))

    @rule(channel=channels, key=st.sampled_from("abcdefg"))
    def publish_latest(self, channel: ChannelKey, key: str) -> None:
        self._publish(self._publication(channel, Delivery.LATEST, b"1", key))

    @rule(channel=channels, key=st.sampled_from("abcdefg"))
    def publish_value_with_ttl(self, channel: ChannelKey, key: str) -> None:
        self._publish(self._publication(channel, Delivery.LATEST, b"1", key, ttl=round(VALUE_TTL * 1000)))

    @rule(channel=channels, key=st.sampled_from("abcdefg"))
    def remove_value(self, channel: ChannelKey, key: str) -> None:
        self._publish(self._publication(channel, Delivery.LATEST, b"", key, removed=True))

    @rule(channel=channels, key=st.sampled_from("abcdefg"), is_right=st.booleans())
    def publish_if_unchanged(self, channel: ChannelKey, key: str, *, is_right: bool) -> None:
        model, now = self.model[channel], self.clock.monotonic()
        value = model.state.get(key)
        if value is None or value.at + value.ttl <= now:
            version = 0
        elif value in list(model.state.values())[-RETENTION.entries :]:
            version = value.version
        else:  # the broker may have dropped it or not
            return
        if self.may_forget:
            return
        if is_right:
            self._publish(self._publication(channel, Delivery.LATEST, b"1", key, if_version=version))
            return
        with pytest.raises(ServiceError) as refused:
            self.run(
                self.broker.publish(self._publication(channel, Delivery.LATEST, b"1", key, if_version=version + 1))
            )
        assert (refused.value.code, refused.value.details["rev"]) == (ErrorCode.CONFLICT, version)

    @precondition(lambda self: self.refused)
    @rule()
    def publish_what_was_refused(self) -> None:
        """A publish that failed may be repeated: it is in the stream at most once."""
        self._publish(self.refused.pop(0))

    @rule(channel=channels)
    def publish_ephemeral(self, channel: ChannelKey) -> None:
        publication = self._publication(channel, Delivery.EPHEMERAL, b"{}")
        assert self.run(self.broker.publish(publication)) == PublishResult(publication.id, epoch="")
        self._expect(publication, None)

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def publish_again(self, data: st.DataObject) -> None:
        known = [key for key, (_, _, at) in self.results.items() if at + WINDOW > self.clock.monotonic()]
        if not known:
            return
        result, publication, _ = self.results[data.draw(st.sampled_from(known))]
        again = self.run(self.broker.publish(publication))
        assert again == PublishResult(result.id, result.epoch, result.offset, result.state_version, duplicate=True)

    @rule(channel=channels)
    def join(self, channel: ChannelKey) -> None:
        """Subscribes, resumes from the client's position, and applies the missed events."""
        model = self.model[channel]
        if model.subscribed or sum(other.subscribed for other in self.model.values()) >= self.most_subscribed:
            return
        if self.attempt(self._subscribe(channel)) is None:
            return
        assert self._resume(channel, model.applied), "a channel with subscribers can always be read"
        model.subscribed = True
        model.applied = model.position(len(model.events))

    @rule(channel=channels)
    def leave(self, channel: ChannelKey) -> None:
        self.run(self.broker.unsubscribe(channel))
        self.model[channel].subscribed = False

    @rule(channel=channels, data=st.data())
    def resume_from_any_earlier_position(self, channel: ChannelKey, data: st.DataObject) -> None:
        seen = self.model[channel].seen
        since = data.draw(st.sampled_from(seen)) if seen else None
        self._resume(channel, since)

    @rule(channel=channels, offset=st.integers(0, 8), id=st.sampled_from(["m-1", "m-5", "nobody's", None]))
    def resume_from_a_position_of_a_lost_stream(self, channel: ChannelKey, offset: int, id: str | None) -> None:
        """Resumes from a position whose epoch and offset match, but not its id."""
        epoch = self.model[channel].epoch
        if epoch is not None and (offset <= len(self.model[channel].events) or not self.may_be_set_back):
            self._resume(channel, Position(epoch, offset, id))

    @rule(
        channel=channels,
        after=st.none() | st.integers(0, 12),
        before=st.none() | st.integers(0, 12),
        limit=st.integers(1, 6),
    )
    def read_history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> None:
        page = self.attempt(self.broker.history(channel, after, before, limit))
        if page is None:
            return
        self._meet_epoch(channel, page.position.epoch)
        model = self.model[channel]
        top = len(model.events)
        asked = [
            n
            for n in range(model.first(self.clock.monotonic()), top + 1)
            if (after is None or n > after) and (before is None or n < before)
        ]
        wanted = asked[:limit] if after is not None else asked[-limit:]
        assert [event.offset for event in page.events] == wanted
        assert [event.data for event in page.events] == [model.events[n - 1].data for n in wanted]
        assert page.has_more == (len(asked) > limit)
        assert page.position == model.position(top)

    @rule(seconds=st.sampled_from([1, 5, 29, 30, 31, 99, 100]))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.advance(seconds)

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def the_sink_got_what_it_should_in_order(self) -> None:
        got = [(event.channel, event.id, event.offset) for event in self.delivered]
        assert got == self.expected
        for event in self.delivered:
            model = self.model[event.channel]
            if event.offset is not None:
                # The client's rule: the next offset, or something has gone missing.
                assert model.applied is not None
                assert event.offset == model.applied.offset + 1
                model.applied = model.position(event.offset)
        self.delivered.clear()
        self.expected.clear()

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _publication(
        self,
        channel: ChannelKey,
        delivery: Delivery,
        data: bytes,
        key: str | None = None,
        ttl: int | None = None,
        *,
        removed: bool = False,
        if_version: int | None = None,
    ) -> Publication:
        self.published += 1
        return Publication(
            channel=channel,
            type=f"test.{delivery.value}",
            id=f"m-{self.published}",
            delivery=delivery,
            data=data,
            sender="ann",
            at=milliseconds(self.clock),
            key=key,
            retention=None if delivery is Delivery.EPHEMERAL else RETENTION,
            ttl=ttl,
            removed=removed,
            if_version=if_version,
        )

    async def _subscribe(self, channel: ChannelKey) -> bool:
        await self.broker.subscribe(channel)
        return True

    def _publish(self, publication: Publication) -> None:
        result = self.attempt(self.broker.publish(publication))
        if result is None:
            self.refused.append(publication)
            return
        self._meet_epoch(publication.channel, result.epoch)
        model = self.model[publication.channel]
        now = self.clock.monotonic()
        if publication.delivery is Delivery.DURABLE:
            model.events.append(Kept(publication.id, publication.data, now))
            assert result == PublishResult(publication.id, result.epoch, offset=len(model.events))
        else:
            assert publication.key is not None
            model.state.pop(publication.key, None)
            assert result.state_version is not None
            assert result.state_version > model.state_version
            assert result == PublishResult(publication.id, result.epoch, state_version=result.state_version)
            model.state_version = result.state_version
            ttl = RETENTION.ttl if publication.ttl is None else publication.ttl / 1000
            ttl = 0.0 if publication.removed else ttl
            model.state[publication.key] = Value(publication.id, now, result.state_version, ttl)
        self._accepted(publication, result)

    def _accepted(self, publication: Publication, result: PublishResult) -> None:
        model = self.model[publication.channel]
        self.results[publication.channel, publication.id] = (result, publication, self.clock.monotonic())
        model.seen.append(model.position(len(model.events)))
        self._expect(publication, result.offset)

    def _expect(self, publication: Publication, offset: int | None) -> None:
        if self.model[publication.channel].subscribed:
            self.expected.append((publication.channel, publication.id, offset))

    def _meet_epoch(self, channel: ChannelKey, epoch: str) -> None:
        """Checks an epoch: it may be another only if the channel without subscribers was evicted."""
        model = self.model[channel]
        if model.epoch != epoch:
            assert model.epoch is None or (self._may_forget(model) and not model.subscribed)
            assert epoch not in self.epochs, "an epoch came back, or two channels share one"
            self.epochs[epoch] = channel
            model.epoch = epoch
            model.events.clear()
            model.state.clear()
            model.state_version = 0

    def _may_forget(self, model: ModelChannel) -> bool:
        return self.may_forget or (self.may_forget_empty and not model.events and not model.state_version)

    def _resume(self, channel: ChannelKey, since: Position | None) -> bool:
        snapshot = self.attempt(self.broker.snapshot(channel, since, MAX_EVENTS, 1_000_000))
        if snapshot is None:
            return False
        self._meet_epoch(channel, snapshot.position.epoch)
        model = self.model[channel]
        now = self.clock.monotonic()
        top = model.position(len(model.events))
        assert snapshot.position == top
        model.check_values([event.id for event in snapshot.state], now)
        missed = model.missed(since, now) if since is not None else []
        assert snapshot.recovered == (None if since is None else missed is not None)
        assert [event.id for event in snapshot.missed] == (missed or [])
        if since is not None and snapshot.recovered:
            expected = list(range(since.offset + 1, top.offset + 1))
            assert [event.offset for event in snapshot.missed] == expected
        model.seen.append(top)
        return True
