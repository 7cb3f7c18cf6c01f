"""Dead letters: entries that could not be delivered, kept until somebody replays or drops them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress

import msgspec
from msgspec import DecodeError, Struct
from msgspec.structs import replace

from service.aio.timers import PeriodicTask
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Delivery, Event, Publication
from service.core.removal import MAX_REMOVALS, is_tombstone
from service.core.webhooks import DeadLetter, DeadLetterPage, Entry, WebhookLimits
from service.errors import ServiceError
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.webhooks.records import LETTER, LETTERS_GONE, Target, dead_letter_retention

PAGE_EVENTS = 200
"""Dead letters in one read."""
RECOUNT_INTERVAL, RETRY_INTERVAL = 600.0, 5.0
"""Seconds between two counts of all dead letters, which find changes that were missed; after a failure."""
MAX_REASON = 256
"""Characters of a reason; the rest is cut off."""

decode_letter = msgspec.json.Decoder(DeadLetter).decode


class LettersGone(Struct, frozen=True):
    """The data of the notice that dead letters are gone."""

    count: int


decode_gone = msgspec.json.Decoder(LettersGone).decode


class DeadLetters:
    """The dead letters of one target. Every method raises ServiceError if the store fails."""

    def __init__(self, target: Target, limits: WebhookLimits, broker: Broker, runtime: Runtime) -> None:
        """`runtime` uses the store clock."""
        self._channel = target.dead_letters
        self._broker = broker
        self._clock = runtime.clock
        self._retention = dead_letter_retention(limits)

    async def add(self, entry: Entry, queue: int, key: str, reason: str) -> None:
        """Keeps an entry. `key`: names this death, so that a repeated call keeps it once."""
        letter = DeadLetter(entry, queue, reason[:MAX_REASON], milliseconds(self._clock))
        await self._publish(LETTER, f"{entry.id}-{key}", Delivery.DURABLE, msgspec.json.encode(letter))

    async def page(self, after: int | None, limit: int) -> DeadLetterPage:
        """Reads at most `limit` dead letters after an offset."""
        letters: list[DeadLetter] = []
        at = after or 0
        while True:
            page = await self._broker.history(self._channel, at, None, PAGE_EVENTS)
            for event in page.events:
                if (letter := _letter(event)) is not None:
                    letters.append(letter)
                    if len(letters) > limit:
                        return DeadLetterPage(letters[:limit], letters[limit - 1].offset)
            if not page.events or not page.has_more:
                return DeadLetterPage(letters, None)
            at = page.events[-1].offset or 0

    async def find(self, ids: Collection[str] | None) -> AsyncIterator[Sequence[tuple[DeadLetter, Event]]]:
        """Yields the dead letters of these entries (None: all) as they are now, in parts for `remove`."""
        last = (await self._broker.history(self._channel, None, None, 1)).position.offset
        at = 0
        while at < last:
            page = await self._broker.history(self._channel, at, None, MAX_REMOVALS)
            found = [(letter, event) for event in page.events if (letter := _letter(event)) is not None]
            yield [one for one in found if ids is None or one[0].entry.id in ids]
            if not page.events:
                return
            at = page.events[-1].offset or 0

    async def remove(self, events: Sequence[Event]) -> int:
        """Removes at most MAX_REMOVALS dead letters. Returns how many were there."""
        if not events:
            return 0
        removed = sum(await self._broker.remove_events(self._channel, events))
        notice = msgspec.json.encode(LettersGone(removed))
        await self._publish(LETTERS_GONE, new_id(), Delivery.EPHEMERAL, notice)
        return removed

    async def count(self) -> int:
        """Counts all dead letters."""
        count, at = 0, 0
        while True:
            page = await self._broker.history(self._channel, at, None, PAGE_EVENTS)
            count += sum(not is_tombstone(event) for event in page.events)
            if not page.events or not page.has_more:
                return count
            at = page.events[-1].offset or 0

    async def _publish(self, type_: str, id: str, delivery: Delivery, data: bytes) -> None:
        retention = self._retention if delivery is Delivery.DURABLE else None
        at = milliseconds(self._clock)
        await self._broker.publish(Publication(self._channel, type_, id, delivery, data, None, at, retention=retention))


class DeadLetterCounter:
    """Knows how many dead letters a target has, while this node delivers the first queue. Implements EventSink."""

    def __init__(self, target: Target, letters: DeadLetters, limit: int, broker: Broker, runtime: Runtime) -> None:
        self._channel = target.dead_letters
        self._letters = letters
        self._limit = limit
        self._broker = broker
        self._tasks = runtime.tasks
        self._recount = PeriodicTask(
            runtime.clock, runtime.tasks, "webhook dead letters", self._count, interval=RECOUNT_INTERVAL
        )
        self._number = 0
        self._is_active = False

    @property
    def number(self) -> int:
        """The number of dead letters; 0 while another node counts them."""
        return min(self._number, self._limit) if self._is_active else 0

    def start(self) -> None:
        """Counts from now on."""
        if not self._is_active:
            self._is_active = True
            self._recount.start(0.0)

    def stop(self) -> None:
        """Leaves it to another node, or to a later `start`."""
        if self._is_active:
            self._is_active = False
            self._recount.cancel()
            self._tasks.spawn("webhook dead letters", self._unsubscribe())

    def close(self) -> None:
        """Ends for good."""
        self._recount.close()

    def deliver(self, event: Event) -> None:
        """Counts a change."""
        if event.type == LETTER:
            self._number += 1
        elif event.type == LETTERS_GONE:
            self._number = max(0, self._number - decode_gone(event.data).count)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Counts again soon."""
        self._recount.run_within(1.0)

    async def _unsubscribe(self) -> None:
        if not self._is_active:  # else it has been started again
            with suppress(ServiceError):
                await self._broker.unsubscribe(self._channel)

    async def _count(self) -> float | None:
        try:
            await self._broker.subscribe(self._channel)
            self._number = await self._letters.count()
        except ServiceError:  # the state of the broker is logged elsewhere
            return RETRY_INTERVAL
        return None


def _letter(event: Event) -> DeadLetter | None:
    """Reads a dead letter. None for a tombstone, and for what another version has written."""
    if event.type != LETTER:
        return None
    try:
        return replace(decode_letter(event.data), offset=event.offset or 0)
    except DecodeError:
        return None
