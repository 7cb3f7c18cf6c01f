"""Facts under faults: nodes that die or lose the store at any call, in any order of what clients do."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.channel import ChannelKey
from tests.support.examples import examples
from tests.support.facts import TENANT, TTL, Fault, Node, Stage

CHANNELS = [ChannelKey(TENANT, f"room:{number}") for number in (1, 2)]
NODES = st.integers(0, 1)
PAUSES = [0, 1, 4, 6, 16, 40]
"""Seconds: less and more than a retry, the debounce, a renewal, and the TTL."""
CLIENTS = st.one_of(
    st.tuples(st.sampled_from(["occupy", "vacate", "join", "leave"]), NODES, st.integers(0, 1)),
    st.tuples(st.sampled_from(["connect", "disconnect", "move"]), NODES, st.just(0)),
)
FAULTS = st.tuples(st.sampled_from(["fail", "fail late", "die", "die late"]), NODES, st.integers(0, 4))
"""The fault, the node, and the number of its calls before the fault."""
OUTAGES = st.tuples(st.sampled_from(["away", "back"]), NODES, st.just(0))
STEPS = st.lists(
    st.one_of(CLIENTS, CLIENTS, FAULTS, OUTAGES, st.tuples(st.just("wait"), st.just(0), st.sampled_from(PAUSES))),
    min_size=3,
    max_size=30,
)
Step = tuple[str, int, int]


class _Play:
    """What clients do at two nodes. A third one lives through everything."""

    def __init__(self) -> None:
        self.stage = Stage("n1", "n2", "n3")
        self.connections: dict[Node, list[str]] = {node: [] for node in self.stage.nodes}
        self.occupied: set[tuple[Node, int]] = set()
        self.joined: set[tuple[Node, int]] = set()
        self.serial = 0

    async def run(self, steps: list[Step]) -> None:
        for kind, number, which in steps:
            node = self.stage.nodes[number]
            if kind == "wait":
                await self.stage.wait(which)
            elif not node.is_dead:
                self.act(node, kind, which)
        for node in self.stage.nodes:
            node.is_away = False
            node.faults = {}
        await self.stage.wait(4 * TTL)

    def act(self, node: Node, kind: str, which: int) -> None:
        if kind == "occupy":
            self.occupied.add((node, which))
            node.occupy(CHANNELS[which])
        elif kind == "vacate" and (node, which) in self.occupied:
            self.occupied.discard((node, which))
            node.vacate(CHANNELS[which])
        elif kind == "join":
            self.joined.add((node, which))
            node.join("ann", f"{node.name}-{which}")
        elif kind == "leave":
            self.joined.discard((node, which))
            node.leave("ann", f"{node.name}-{which}")
        elif kind == "connect":
            self.serial += 1
            self.connections[node].append(f"c-{self.serial}")
            node.connect(f"c-{self.serial}")
        elif kind == "disconnect" and self.connections[node]:
            node.disconnect(self.connections[node].pop(0))
        elif kind == "move" and self.connections[node]:  # a session of polls
            other = self.stage.nodes[1 - self.stage.nodes.index(node)]
            id = self.connections[node].pop(0)
            node.facts.client_left(id, TENANT)
            if not other.is_dead:
                other.connect(id)
                self.connections[other].append(id)
        elif kind in ("away", "back"):
            node.is_away = kind == "away"
        elif kind.startswith(("fail", "die")):
            node.faults[node.calls + which] = Fault(kind.partition(" ")[0], late=kind.endswith("late"))

    def lasting(self) -> set[tuple[str, str, str]]:
        """The facts that hold in the end."""
        held = {("channel", CHANNELS[which].name, "") for node, which in self.occupied if not node.is_dead}
        held |= {("presence", "room:1", "ann") for node, _ in self.joined if not node.is_dead}
        return held | {
            ("client", "", connection)
            for node, connections in self.connections.items()
            if not node.is_dead
            for connection in connections
        }

    def check(self) -> None:
        histories = self.stage.store.histories()
        lasting = self.lasting()
        for fact, told in histories.items():
            begin, end = {
                "channel": ("occupied", "vacated"),
                "presence": ("joined", "left"),
                "client": ("connected", "disconnected"),
            }[fact[0]]
            assert told == [(begin, end)[index % 2] for index in range(len(told))], (fact, told)
            assert (told[-1] == begin) == (fact in lasting), (fact, told)
        assert lasting <= histories.keys(), lasting - histories.keys()


@given(STEPS)
@settings(deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
def test_begins_and_ends_alternate_and_the_last_is_true(steps: list[Step]) -> None:
    async def play() -> None:
        it = _Play()
        try:
            await it.run(steps)
            it.check()
        finally:
            await it.stage.close()

    asyncio.run(play())
