"""Clients of a watched day: they come back when they are cut, with the position that they had."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec

from tests.faults.node import Node
from tests.faults.tokens import token
from tests.support.wire import Refused, Wire, connect

AGAIN = 0.3
"""Seconds, with jitter, before a client tries again."""


class Guest:
    """One user, somewhere, until `leave`."""

    def __init__(self, number: int, nodes: list[Node], channels: list[str], random: Random) -> None:
        self.user = f"user-{number}"
        self.wire: Wire | None = None
        self._nodes = nodes
        self._home = number % len(nodes)
        self._channels = channels
        self._random = random
        self._since: dict[str, dict[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None
        self._asked = 0

    def come(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._stay(), name=self.user)

    async def leave(self) -> None:
        """Ends, politely."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.wire is not None:
            self.wire.leave()
            self.wire.abort()

    def say(self, type_: str, channel: str, data: Any) -> None:
        """Publishes, if it is connected."""
        if self.wire is not None and self.wire.is_open:
            self._asked += 1
            self.wire.send({"type": type_, "channel": channel, "data": data, "id": f"p{self._asked}"})

    async def _stay(self) -> None:
        while True:
            try:
                self.wire = await connect(
                    self._nodes[self._home].port, self._heard, bearer=token(self.user, "red"), receive_buffer=8192
                )
            except (Refused, OSError):
                self._home = self._random.randrange(len(self._nodes))
                await asyncio.sleep(AGAIN * self._random.uniform(0.5, 1.5))
                continue
            self.wire.send({"type": "ready"})
            for channel in self._channels:
                since = self._since.get(channel)
                self.wire.send(
                    {
                        "type": "subscribe",
                        "id": f"s-{channel}",
                        "channel": channel,
                        **({"since": since} if since else {}),
                    }
                )
            await asyncio.shield(self.wire.gone)
            self._home = self._random.randrange(len(self._nodes))  # as a balancer leads those who come back
            await asyncio.sleep(AGAIN * self._random.uniform(0.2, 1.0))

    def _heard(self, text: bytes) -> None:
        found = msgspec.json.decode(text)
        for message in found if isinstance(found, list) else [found]:
            channel = message.get("channel")
            if channel not in self._channels or message.get("offset") is None:
                continue
            last = message.get("last") if message["type"] == "subscribed" else message.get("id")
            epoch = message.get("epoch") or self._since.get(channel, {}).get("epoch")
            self._since[channel] = {"epoch": epoch, "offset": message["offset"], **({"id": last} if last else {})}
