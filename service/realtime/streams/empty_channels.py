"""Asks the backend for the content of channels that have none, before a client is subscribed (`when_empty` in the contract)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from typing import Literal

from service.aio.single_flight import SingleFlight
from service.contract.gate import Gate
from service.core.answer_memory import AnswerMemory
from service.core.broker import Broker, PublishResult, Snapshot
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.hooks import Content, EmptyQuestion, Hook, HookError, Hooks, Outcome, no_answer
from service.core.identity import backend
from service.errors import ServiceError
from service.realtime.publisher import Publisher
from service.realtime.runtime import Runtime

MIN_TTL = 1.0
"""Seconds for which an answer counts at least, so that a crowd of subscribers does not ask for each of them."""
KNOWN_TTL = 10.0
"""Seconds for which a channel with content is not looked at again."""
MAX_SNAPSHOT_BYTES = 65_536
"""Bytes of one event, which is read to see whether the channel has any."""


class EmptyChannels:
    """Fills empty channels. One question at a time for a channel and node, whose answer all subscribers share.

    Two nodes may ask at the same time. Their events get the same ids, which come from the position of the empty channel. So the
    store keeps each event once.
    """

    def __init__(
        self, gate: Gate, broker: Broker, publisher: Publisher, hooks: Hooks | None, max_answers: int, runtime: Runtime
    ) -> None:
        """`hooks`: None if the contract names none. `max_answers`: channels of which something is remembered."""
        self._gate = gate
        self._broker = broker
        self._publisher = publisher
        self._hooks = hooks
        self._clock = runtime.clock
        self._known = AnswerMemory[ChannelKey, Literal[True]](
            max_answers,
            runtime.clock.monotonic,
            on_evict=lambda: None,  # it is looked at again, which costs one read
        )
        self._running: dict[ChannelKey, SingleFlight[None]] = {}
        runtime.metrics.hooks.hook_answers.labels("cache_empty").set_function(lambda: len(self._known))

    def fill(self, channel: ChannelKey, hook: Hook) -> Awaitable[None] | None:
        """Fills a channel if it is empty. Returns what has to be waited for; None if nobody has to be asked.

        Raises ServiceError at the end of the wait: HOOK_UNAVAILABLE, BROKER_UNAVAILABLE.
        """
        if self._hooks is None or self._known.recall(channel):
            return None
        return self._share(self._hooks, channel, hook)

    async def _share(self, hooks: Hooks, channel: ChannelKey, hook: Hook) -> None:
        flight = self._running.get(channel)
        if flight is None:
            flight = self._running[channel] = SingleFlight("channel filling", lambda: self._fill(hooks, channel, hook))
        try:
            await flight.result()
        finally:
            if not flight.is_running and self._running.get(channel) is flight:
                del self._running[channel]

    async def _fill(self, hooks: Hooks, channel: ChannelKey, hook: Hook) -> None:
        snapshot = await self._broker.snapshot(channel, None, 1, MAX_SNAPSHOT_BYTES, 1)
        if snapshot.state or snapshot.tail:
            self._known.remember(channel, True, KNOWN_TTL)
            return
        try:
            content = await hooks.ask_for_content(hook, EmptyQuestion(channel.tenant, channel.name))
            self._check(channel, content)
        except HookError as error:
            hooks.record(hook, error.outcome)
            if not hook.fails_open:
                raise no_answer("the content of this channel", error.outcome) from error
            self._known.remember(channel, True, MIN_TTL)
            return
        hooks.record(hook, Outcome.ALLOWED)
        for number, (type_, data) in enumerate(content.events):
            result = self._publisher.publish(
                backend(channel.tenant), channel.name, type_, data, _id(snapshot, number), None, None
            )
            if not isinstance(result, PublishResult):
                await result
        self._known.remember(channel, True, max(content.ttl, MIN_TTL))

    def _check(self, channel: ChannelKey, content: Content) -> None:
        """Passes all events through the gate, so that none is published if one is wrong. Raises HookError."""
        identity, at = backend(channel.tenant), milliseconds(self._clock)
        for number, (type_, data) in enumerate(content.events):
            try:
                self._gate.validate(identity, channel.name, type_, data, "content", None, None, at)
            except ServiceError as error:
                raise HookError(Outcome.BAD_REPLY, f"events[{number}]: {error.message}") from error


def _id(snapshot: Snapshot, number: int) -> str:
    """Returns the id of an event: the same at all nodes that have seen the channel empty at the same position."""
    position = snapshot.position
    place = f"{position.epoch} {position.offset} {snapshot.state_version} {number}"
    return f"content-{hashlib.sha256(place.encode()).hexdigest()[:32]}"
