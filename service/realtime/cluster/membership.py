"""The nodes that share the broker, and what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from service.core.clock import Clock
from service.core.event import Event
from service.realtime.cluster.messages import NODE_STATE, Answer, NodeState, decode_state
from service.realtime.ids import new_id


class NodeReport(NamedTuple):
    """What a node has told of itself last."""

    age: float
    """Seconds since this node heard it."""
    state: NodeState


class Membership:
    """Every other node that has told of itself lately."""

    def __init__(self, me: str, clock: Clock) -> None:
        self._me = me
        self._clock = clock
        self._heard: dict[str, tuple[float, NodeState]] = {}

    def take(self, event: Event) -> None:
        """Notes what a node tells of itself."""
        node = event.key or ""
        state = decode_state(event.data)
        if state.gone:
            self._heard.pop(node, None)
        elif node != self._me:
            self._heard[node] = (self._clock.monotonic(), state)

    def alive(self) -> Mapping[str, NodeState]:
        """What each one has told last, by id."""
        return {node: word.state for node, word in self.words().items()}

    def words(self) -> Mapping[str, NodeReport]:
        """As `alive`, and how old each word is."""
        now = self._clock.monotonic()
        for node in [node for node, (heard, _) in self._heard.items() if heard <= now - NODE_STATE.ttl]:
            del self._heard[node]
        return {node: NodeReport(now - heard, state) for node, (heard, state) in self._heard.items()}


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What the nodes have answered, summed up."""

    counts: list[int]
    nodes: int
    """How many have answered."""
    complete: bool
    """Whether every node that is known to be alive has."""


class ClusterRequest:
    """One request to all nodes, and the answers so far."""

    def __init__(self, expected: Set[str], size: int) -> None:
        self.id = new_id()
        self._expected = expected
        self._size = size
        self._answers: dict[str, list[int]] = {}
        self._settled = asyncio.Event()

    def take(self, answer: Answer) -> None:
        """Takes a node's answer; its first one counts."""
        if len(answer.counts) == self._size:
            self._answers.setdefault(answer.node, answer.counts)
        if self._complete:
            self._settled.set()

    @property
    def _complete(self) -> bool:
        return self._answers.keys() >= self._expected

    async def tally(self, patience: float) -> Aggregate:
        """The sum, once all have answered or so many seconds are over."""
        try:
            async with asyncio.timeout(patience):
                await self._settled.wait()
        except TimeoutError:
            pass  # `complete` says it
        counts = [sum(column) for column in zip([0] * self._size, *self._answers.values(), strict=True)]
        return Aggregate(counts, len(self._answers), self._complete)


class ClusterRequests:
    """The inquiries under way."""

    def __init__(self) -> None:
        self._open: dict[str, ClusterRequest] = {}

    @contextmanager
    def open(self, expected: Set[str], size: int = 1) -> Iterator[ClusterRequest]:
        """Begins one, of which each node answers `size` numbers; answers that come after the block are too late."""
        inquiry = ClusterRequest(expected, size)
        self._open[inquiry.id] = inquiry
        try:
            yield inquiry
        finally:
            del self._open[inquiry.id]

    def take(self, answer: Answer) -> None:
        """Hands an answer to whoever waits for it."""
        inquiry = self._open.get(answer.request)
        if inquiry is not None:
            inquiry.take(answer)
