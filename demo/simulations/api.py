"""What a simulation gets: the client of the service, an ordered queue of publishes, dice and a clock."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from tidewire import AsyncTidewire, NewEvent, TidewireError

MAX_QUEUE = 2_000
"""Events that wait to be published. Above that, the oldest are dropped: an outage must not fill the memory."""
MAX_BATCH = 100


class Api:
    """What a simulation uses. Each simulation has its own, and all share one client.

    >>> async def run(api: Api) -> None:
    ...     while True:
    ...         if await api.is_watched("board:main"):
    ...             api.publish("board:main", "board.metric", {"metric": "cpu", "value": api.random.random()})
    ...         await api.sleep(1)
    """

    def __init__(self, client: AsyncTidewire, seed: str | None = None, speed: float = 1.0) -> None:
        self.client = client
        """The service's own Python client, with an API key and the token of the user `support-bot`."""
        self.random = random.Random(seed)  # noqa: S311  # choices of a play, no secrets
        self.speed = speed
        self._began = time.monotonic()
        self._queue: deque[NewEvent] = deque(maxlen=MAX_QUEUE)
        self._filled = asyncio.Event()

    def now(self) -> float:
        """Seconds of the simulation since its start."""
        return (time.monotonic() - self._began) * self.speed

    async def sleep(self, seconds: float) -> None:
        """Waits for seconds of the simulation."""
        await asyncio.sleep(seconds / self.speed)

    def publish(self, channel: str, kind: str, data: dict[str, Any], sender: str | None = None) -> None:
        """Queues an event. Queued events are sent together, in order, each once."""
        self._queue.append(NewEvent(channel, kind, data, sender=sender))
        self._filled.set()

    async def is_watched(self, channel: str) -> bool:
        """Returns True if the channel has subscribers now. Without any, a simulation publishes little or nothing."""
        with suppress(TidewireError):
            return (await self.client.channel_info(channel)).subscribers > 0
        return False

    async def flush(self) -> None:
        """Sends what is queued until cancelled. The client repeats what got no answer; the same ids are stored once."""
        while True:
            await self._filled.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            if not self._queue:
                self._filled.clear()
            while not await self.send(batch):  # noqa: ASYNC110  # the service reports no event when it is back
                await asyncio.sleep(1.0)

    async def send(self, batch: list[NewEvent]) -> bool:
        """Sends events and removals now. Returns False if the service did not take them now; they may be sent again."""
        try:
            result = await self.client.publish_many(batch)
        except TidewireError as error:
            if error.retryable:
                return False
            print(f"demo: refused: {error}", file=sys.stderr)
            return True
        for refused in result.refused:
            print(f"demo: refused: {refused.error}", file=sys.stderr)
        return True
