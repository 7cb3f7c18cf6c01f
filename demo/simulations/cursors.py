"""Two bots for a visitor who is alone on the canvas: they move, draw, and take back their older drawings."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

from tidewire import NewEvent, TidewireError

from .api import Api

CANVAS = "canvas:main"
TICK = 0.1
"""Seconds between two positions of a cursor."""
SPEED = 620.0
"""Units of the sheet per second."""
CELL = (375, 500)
"""A drawing has so much space."""
CORNERS = ((0, 0), (1, 1), (1, 0), (0, 1))
"""The cells of a bot, in the order in which it uses them. The oldest drawing goes before its cell is used again."""

Point = tuple[float, float]


def _spiral() -> list[list[Point]]:
    return [[(0.5 + 0.006 * n * math.cos(n / 5), 0.5 + 0.006 * n * math.sin(n / 5)) for n in range(80)]]


def _flower() -> list[list[Point]]:
    petals = [(n / 60 * math.tau, 0.34 + 0.14 * math.cos(n / 60 * math.tau * 6)) for n in range(61)]
    stem = [(0.5 + 0.03 * math.sin(n), 1.0 + n * 0.09) for n in range(7)]
    return [[(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for a, r in petals], stem]


def _face() -> list[list[Point]]:
    head = [(0.5 + 0.48 * math.cos(n / 40 * math.tau), 0.5 + 0.48 * math.sin(n / 40 * math.tau)) for n in range(41)]
    smile = [(0.5 + 0.26 * math.cos(n / 12 * math.pi), 0.58 + 0.2 * math.sin(n / 12 * math.pi)) for n in range(13)]
    return [head, [(0.34, 0.32), (0.34, 0.42)], [(0.66, 0.32), (0.66, 0.42)], smile]


def _waves() -> list[list[Point]]:
    return [
        [(n / 40 * 1.6, row * 0.28 + 0.09 * math.sin(n / 40 * math.tau * 3)) for n in range(41)] for row in range(3)
    ]


def _star() -> list[list[Point]]:
    return [[(0.5 + 0.5 * math.sin(n * 0.8 * math.pi), 0.5 - 0.5 * math.cos(n * 0.8 * math.pi)) for n in range(6)]]


def _house() -> list[list[Point]]:
    walls = [(0.1, 1.0), (0.1, 0.45), (0.5, 0.05), (0.9, 0.45), (0.9, 1.0), (0.1, 1.0)]
    return [walls, [(0.42, 1.0), (0.42, 0.68), (0.6, 0.68), (0.6, 1.0)]]


DRAWINGS = (_spiral, _flower, _face, _waves, _star, _house)


@dataclass
class Bot:
    """One cursor and what it has drawn. It does no I/O: `step` returns what it publishes."""

    name: str
    tone: int
    chance: random.Random
    left: int
    """The first of its two columns of cells."""
    x: float = 750.0
    y: float = 500.0
    _serial: Iterator[int] = field(default_factory=count)
    _drawings: deque[list[str]] = field(default_factory=deque)
    _acts: Iterator[list[NewEvent]] | None = None

    def step(self) -> list[NewEvent]:
        """Returns the events of the next tenth of a second."""
        if self._acts is None:
            self._acts = self._play()
        return next(self._acts)

    def leave(self) -> list[NewEvent]:
        """Hides the cursor. The drawings stay until their `ttl` has passed."""
        self._acts = None
        return [self._point("gone")]

    def _play(self) -> Iterator[list[NewEvent]]:
        for column, row in cycle(CORNERS):
            size = self.chance.uniform(140, 200)
            left = (self.left + column) * CELL[0] + self.chance.uniform(20, CELL[0] - 1.65 * size)
            top = row * CELL[1] + self.chance.uniform(40, CELL[1] - 1.65 * size)
            self._drawings.append([])
            width = self.chance.choice((5, 10, 10))
            for shape in self.chance.choice(DRAWINGS)():
                line = [(left + x * size, top + y * size) for x, y in shape]
                for _ in self._walk([(self.x, self.y), line[0]]):
                    yield [self._point("over")]
                yield from self._draw(line, width)
            removed = self._drawings.popleft() if len(self._drawings) == len(CORNERS) else []
            yield [NewEvent(CANVAS, "canvas.line", key=id, removed=True) for id in removed]
            for _ in range(self.chance.randrange(12, 30)):
                yield []

    def _draw(self, line: list[Point], width: int) -> Iterator[list[NewEvent]]:
        id = f"bot-{self.tone}-{self.chance.getrandbits(32):x}-{next(self._serial)}"
        self._drawings[-1].append(id)
        points = [round(line[0][0]), round(line[0][1])]
        for passed in self._walk(line):
            points += [round(value) for point in passed for value in point]
            data = {"id": id, "tone": self.tone, "width": width, "points": points[:400]}
            yield [self._point("draws"), NewEvent(CANVAS, "canvas.line", data)]

    def _walk(self, line: list[Point]) -> Iterator[list[Point]]:
        """Moves along a line; yields the points of each tick."""
        passed: list[Point] = []
        left = SPEED * TICK
        for to in line:
            while (distance := math.dist((self.x, self.y), to)) > left:
                share = left / distance
                self.x, self.y = self.x + (to[0] - self.x) * share, self.y + (to[1] - self.y) * share
                yield [*passed, (self.x, self.y)]
                passed, left = [], SPEED * TICK
            left -= distance
            self.x, self.y = to
            passed.append(to)
        yield passed

    def _point(self, state: str) -> NewEvent:
        data: dict[str, Any] = {"id": f"bot-{self.tone}", "name": self.name, "tone": self.tone}
        return NewEvent(CANVAS, "canvas.cursor", {**data, "x": round(self.x), "y": round(self.y), "state": state})


async def run(api: Api) -> None:
    """Plays while exactly one visitor is on the canvas. Otherwise it asks once a second who is there."""
    bots = [Bot("Robin (bot)", 4, api.random, left=0), Bot("Kim (bot)", 5, api.random, left=2)]
    while True:
        while not await _is_one_alone(api):
            await api.sleep(1)
        for _ in range(20):
            await _send(api, [event for bot in bots for event in bot.step()])
            await api.sleep(TICK)
        if not await _is_one_alone(api):
            await _send(api, [event for bot in bots for event in bot.leave()])


async def _send(api: Api, events: list[NewEvent]) -> None:
    """Publishes events of this moment. Those of an outage are lost, as the movements of a visitor are."""
    if events:
        await api.send(events)


async def _is_one_alone(api: Api) -> bool:
    with suppress(TidewireError):
        return (await api.client.presence_counts([CANVAS])).get(CANVAS) == 1
    return False
