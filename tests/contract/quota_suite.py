"""The guarantee of the QuotaStore port (service/core/quota.py) as tests. A subclass opens the store.

`SharedQuotaSuite` adds what two nodes owe each other, `TimedQuotaSuite` what comes with time.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.quota import (
    CLAIM_TTL,
    Held,
    HoldChange,
    QuotaClaim,
    QuotaScope,
    QuotaStore,
    SessionHold,
    SessionOrderUpdate,
)
from tests.contract.begun import Begun
from tests.support.examples import examples

ACME, ANN = QuotaScope("acme"), QuotaScope("acme", "ann")
CAP = 5
COMINGS = st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=30)
"""Node, and whether a connection starts or ends."""


class Nodes(NamedTuple):
    """Two nodes of one empty store; for a store of one node, the same node twice."""

    one: QuotaStore
    two: QuotaStore


class Staged(ABC):
    """Opens the store of a suite."""

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[Nodes]:
        """Returns an empty store."""

    @pytest.fixture
    async def nodes(self) -> AsyncIterator[Nodes]:
        async with self.opened() as nodes:
            yield nodes


async def update_session_order(store: QuotaStore, step: SessionOrderUpdate) -> list[str]:
    [oldest] = await store.update_session_order([step])
    return list(oldest)


ONE, TWO = 2**48 - 1, 7
"""The numbers of the nodes."""


async def hold(
    store: QuotaStore, session: str, node: int, change: HoldChange = HoldChange.TAKE, limit: int | None = CAP
) -> Held:
    [held] = await store.hold_sessions([SessionHold(ANN, session, node, change, limit)])
    return held


class QuotaSuite(Staged):
    """One subclass for each implementation."""

    async def test_claim_returns_total_of_its_scope(self, nodes: Nodes) -> None:
        store = nodes.one
        assert list(await store.claim([QuotaClaim(ACME, 1, CAP), QuotaClaim(ANN, 1, CAP)])) == [1, 1]
        assert list(await store.claim([QuotaClaim(ACME, 2, CAP), QuotaClaim(QuotaScope("acme", "ben"), 1, CAP)])) == [
            2,
            1,
        ]
        assert list(
            await store.claim([QuotaClaim(QuotaScope("other"), 1), QuotaClaim(QuotaScope("other", "ann"), 1)])
        ) == [1, 1]

    async def test_quota_calls_started_outside_of_task_succeed(self, nodes: Nodes) -> None:
        async with asyncio.timeout(10):
            assert list(await Begun(nodes.one.claim([QuotaClaim(ACME, 1, CAP)]))) == [1]
            assert [
                list(oldest)
                for oldest in await Begun(nodes.one.update_session_order([SessionOrderUpdate(ANN, 1, added=["c-1"])]))
            ] == [[]]

    async def test_claim_replaces_earlier_claim(self, nodes: Nodes) -> None:
        for held in (1, 2, 2, 1, 0, 4):
            assert list(await nodes.one.claim([QuotaClaim(ANN, held)])) == [held]

    async def test_claim_above_limit_is_counted_and_not_stored(self, nodes: Nodes) -> None:
        assert list(await nodes.one.claim([QuotaClaim(ANN, CAP, CAP)])) == [CAP]
        assert list(await nodes.one.claim([QuotaClaim(ANN, CAP + 1, CAP)])) == [CAP + 1]
        assert list(await nodes.one.claim([QuotaClaim(ANN, CAP, CAP)])) == [CAP]

    async def test_claim_without_claims_returns_nothing(self, nodes: Nodes) -> None:
        assert list(await nodes.one.claim([])) == []

    async def test_holds_without_sessions_return_nothing(self, nodes: Nodes) -> None:
        assert list(await nodes.one.hold_sessions([])) == []

    async def test_session_order_below_limit_removes_nothing(self, nodes: Nodes) -> None:
        steps = [
            SessionOrderUpdate(ANN, 2, added=["a"]),
            SessionOrderUpdate(ANN, 2, added=["b"]),
            SessionOrderUpdate(ANN, 2, renewed=["a", "b"]),
        ]
        assert [list(oldest) for oldest in await nodes.one.update_session_order(steps)] == [[], [], []]
        assert list(await nodes.one.update_session_order([])) == []


class SharedQuotaSuite(QuotaSuite):
    """Guarantees between the nodes of one store."""

    async def test_claim_limit_applies_to_all_nodes(self, nodes: Nodes) -> None:
        assert list(await nodes.one.claim([QuotaClaim(ANN, 3, CAP)])) == [3]
        assert list(await nodes.two.claim([QuotaClaim(ANN, 2, CAP)])) == [5]
        assert list(await nodes.two.claim([QuotaClaim(ANN, 3, CAP)])) == [6]
        assert list(await nodes.one.claim([QuotaClaim(ANN, 4, CAP)])) == [6]
        assert list(await nodes.two.claim([QuotaClaim(ANN, 1)])) == [4]
        assert list(await nodes.one.claim([QuotaClaim(ANN, 4, CAP)])) == [5]
        assert list(await nodes.one.claim([QuotaClaim(ANN, 0)])) == [1]
        assert list(await nodes.two.claim([QuotaClaim(ANN, CAP, CAP)])) == [CAP]

    async def test_session_counts_once_over_all_nodes(self, nodes: Nodes) -> None:
        assert await hold(nodes.one, "a", ONE) == (1, 0)
        assert await hold(nodes.two, "a", TWO) == (1, ONE)
        assert await hold(nodes.two, "b", TWO) == (2, 0)
        assert list(await nodes.one.claim([QuotaClaim(ANN, CAP - 2, CAP)])) == [CAP]
        assert list(await nodes.two.claim([QuotaClaim(ANN, 1, CAP)])) == [CAP + 1]
        assert await hold(nodes.one, "c", ONE) == (CAP + 1, 0)
        assert await hold(nodes.one, "c", ONE) == (CAP + 1, 0), "not taken"
        assert await hold(nodes.one, "c", ONE, limit=None) == (CAP + 1, 0)
        assert await hold(nodes.one, "a", ONE) == (CAP + 1, TWO), "it has its place"

    async def test_only_the_last_holder_renews_and_releases_a_session(self, nodes: Nodes) -> None:
        await hold(nodes.one, "a", ONE)
        await hold(nodes.two, "a", TWO)
        for change in (HoldChange.RENEW, HoldChange.RELEASE):
            assert await hold(nodes.one, "a", ONE, change) == (1, TWO)
            assert list(await nodes.one.claim([QuotaClaim(ANN, 0)])) == [1]
        assert await hold(nodes.two, "a", TWO, HoldChange.RELEASE) == (1, TWO)
        assert list(await nodes.one.claim([QuotaClaim(ANN, 0)])) == [0]
        assert await hold(nodes.one, "a", ONE, HoldChange.RENEW) == (1, 0), "restored after a loss"
        assert list(await nodes.two.claim([QuotaClaim(ANN, 0)])) == [1]

    async def test_session_at_many_nodes_at_once_has_one_holder(self, nodes: Nodes) -> None:
        await hold(nodes.one, "a", 1)
        helds = await asyncio.gather(*(hold(nodes[number % 2], "a", number) for number in range(2, 22)))
        assert {total for total, _ in helds} == {1}
        last = await hold(nodes.one, "a", 99, HoldChange.RENEW)
        assert len({holder for _, holder in (*helds, last)}) == len(helds) + 1, "each has taken it from another"

    async def test_claim_of_similar_names_is_counted_apart(self, nodes: Nodes) -> None:
        holders = [
            ACME,
            ANN,
            QuotaScope("acme", ""),
            QuotaScope("acme", "ann}"),
            QuotaScope("acme", "{ann}"),
            QuotaScope("acme", "a:b"),
        ]
        assert list(await nodes.one.claim([QuotaClaim(holder, 1) for holder in holders])) == [1] * len(holders)
        assert list(await nodes.two.claim([QuotaClaim(holder, 1) for holder in holders])) == [2] * len(holders)

    async def test_session_order_removes_oldest_on_any_node(self, nodes: Nodes) -> None:
        assert await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["a"])) == []
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["b"])) == []
        assert (
            await update_session_order(nodes.one, SessionOrderUpdate(QuotaScope("acme", "ben"), 2, added=["x", "y"]))
            == []
        )
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["c"])) == ["a"]
        assert await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, renewed=["a"])) == [], (
            "it does not come back by being there"
        )
        assert await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["d", "e"])) == ["b", "c"]

    async def test_session_order_ended_connection_frees_place(self, nodes: Nodes) -> None:
        await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["a", "b"]))
        assert (
            await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["c"], removed=["b", "never there"]))
            == []
        )
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["d"])) == ["a"]

    async def test_session_order_added_twice_changes_nothing(self, nodes: Nodes) -> None:
        for _ in range(2):
            await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["a", "b"]))
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["c"])) == ["a"]

    async def test_session_order_concurrent_connections_keep_limit(self, nodes: Nodes) -> None:
        names = [f"c-{number}" for number in range(30)]
        fallen = await asyncio.gather(
            *(
                update_session_order(nodes[number % 2], SessionOrderUpdate(ANN, CAP, added=[name]))
                for number, name in enumerate(names)
            )
        )
        out = [name for some in fallen for name in some]
        assert len(set(out)) == len(out) == len(names) - CAP

    @given(steps=COMINGS)
    @settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None, max_examples=examples(20))
    async def test_claim_limit_holds_under_concurrency(self, steps: list[tuple[int, bool]]) -> None:
        async with self.opened() as nodes:
            held = [0, 0]
            inside = [0, 0]  # of those: let in, so that they can go

            async def step(which: int, comes: bool) -> None:
                if comes:
                    held[which] += 1
                    [total] = await nodes[which].claim([QuotaClaim(ANN, held[which], CAP)])
                    entered.append(total <= CAP)
                    if total > CAP:
                        held[which] -= 1
                    else:
                        inside[which] += 1
                elif inside[which]:
                    held[which] -= 1
                    inside[which] -= 1
                await nodes[which].claim([QuotaClaim(ANN, held[which])])

            entered: list[bool] = []
            await asyncio.gather(*(step(which, comes) for which, comes in steps))
            comings = sum(comes for _, comes in steps)
            assert len(entered) == comings
            assert all(entered) or comings > CAP
            assert sum(held) <= CAP
            # What was claimed last is what stays, in whatever order it arrived.
            assert list(await nodes.one.claim([QuotaClaim(ANN, held[0])])) == [sum(held)]
            assert list(await nodes.two.claim([QuotaClaim(ANN, held[1])])) == [sum(held)]


class TimedQuotaSuite(Staged):
    """Guarantees about time."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Moves the store's time."""

    async def test_claim_of_silent_node_expires(self, nodes: Nodes) -> None:
        await nodes.one.claim([QuotaClaim(ACME, 3), QuotaClaim(ANN, 3)])
        await self.advance(CLAIM_TTL - 1)
        assert list(await nodes.two.claim([QuotaClaim(ACME, 1), QuotaClaim(ANN, 1)])) == [4, 4]
        await self.advance(2)
        assert list(await nodes.two.claim([QuotaClaim(ACME, 1), QuotaClaim(ANN, 1)])) == [1, 1]

    async def test_session_that_its_node_does_not_renew_expires(self, nodes: Nodes) -> None:
        await hold(nodes.one, "a", ONE)
        await hold(nodes.one, "b", ONE)
        await self.advance(CLAIM_TTL - 1)
        assert await hold(nodes.one, "b", ONE, HoldChange.RENEW) == (2, ONE)
        await self.advance(2)
        assert list(await nodes.two.claim([QuotaClaim(ANN, 1)])) == [2]
        assert await hold(nodes.two, "a", TWO, limit=2) == (3, 0), "it is new, and over the limit"

    async def test_claim_repeated_in_time_does_not_expire(self, nodes: Nodes) -> None:
        for _ in range(4):
            await nodes.one.claim([QuotaClaim(ANN, 3)])
            await self.advance(CLAIM_TTL / 2)
        assert list(await nodes.two.claim([QuotaClaim(ANN, 1)])) == [4]

    async def test_session_order_connections_of_silent_node_expire(self, nodes: Nodes) -> None:
        await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["a", "b"]))
        await self.advance(CLAIM_TTL / 2)
        await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, renewed=["b"]))
        await self.advance(CLAIM_TTL / 2 + 1)
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["c"])) == []
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["d"])) == ["b"]

    async def test_session_order_after_data_loss_is_restored_by_renewals(self, nodes: Nodes) -> None:
        await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, added=["a", "b"]))
        await self.advance(CLAIM_TTL + 1)
        assert await update_session_order(nodes.one, SessionOrderUpdate(ANN, 2, renewed=["a", "b"])) == []
        assert await update_session_order(nodes.two, SessionOrderUpdate(ANN, 2, added=["c"])) == ["a"]
