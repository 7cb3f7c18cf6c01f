"""The guarantee of the PresenceStore port (service/core/presence.py) as tests. A subclass opens the store.

`SharedPresenceSuite` adds what two nodes owe each other, `TimedPresenceSuite` what comes with time.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication
from service.core.presence import (
    ExpiredEntry,
    FoundUser,
    Member,
    PresenceChange,
    PresenceEntry,
    PresenceJoin,
    PresenceStore,
    updated_info,
)
from tests.contract.begun import Begun
from tests.support.examples import examples

ROOM = ChannelKey("acme", "room:1")
OTHER_ROOM = ChannelKey("acme", "room:2")
SAME_ROOM_OF_ANOTHER_TENANT = ChannelKey("other", "room:1")
MAX_TOLD = 4
"""`max_announced_users` of the stores under test."""
TTL = 30.0
JOINED, LEFT = "presence.joined", "presence.left"

STEPS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([ROOM, SAME_ROOM_OF_ANOTHER_TENANT]),
        st.sampled_from(["ann", "ben"]),
        st.sampled_from(["c-1", "c-2", "c-3"]),
    ),
    max_size=40,
)
HASTE = st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.sampled_from(["c-1", "c-2", "c-3"])), max_size=30)
"""Node, join or leave, connection."""
_UNHURRIED = settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None, max_examples=examples(20))


def event(kind: str, channel: ChannelKey, user: str) -> Publication:
    """Returns the event of a change."""
    return Publication(
        channel=channel,
        type=kind,
        id="e",
        delivery=Delivery.EPHEMERAL,
        data=b'{"user":"\xc3\xa9"}',
        sender=user,
        at=1_795_374_000_123,
        key=user,
    )


def farewell(channel: ChannelKey, user: str) -> Publication:
    return event(LEFT, channel, user)


def entrance(channel: ChannelKey, user: str, connection: str, info: bytes | None = None) -> PresenceJoin:
    return PresenceJoin(PresenceEntry(channel, user, connection), info, event(JOINED, channel, user))


class Node:
    """A store with short method names."""

    def __init__(self, store: PresenceStore) -> None:
        self.store = store

    async def join(self, channel: ChannelKey, user: str, connection: str, info: bytes | None = None) -> PresenceChange:
        return await self.store.join(entrance(channel, user, connection, info))

    async def leave(self, channel: ChannelKey, user: str, connection: str) -> PresenceChange:
        return await self.store.leave(PresenceEntry(channel, user, connection), event(LEFT, channel, user))

    async def update(
        self, channel: ChannelKey, user: str, connection: str, info: bytes | None
    ) -> PresenceChange | None:
        return await self.store.update(entrance(channel, user, connection, info))

    async def joins(self, channel: ChannelKey, user: str, connection: str) -> bool:
        return (await self.join(channel, user, connection)).changed

    async def leaves(self, channel: ChannelKey, user: str, connection: str) -> bool:
        return (await self.leave(channel, user, connection)).changed

    async def sweep(self, *channels: ChannelKey) -> list[tuple[ChannelKey, PresenceChange]]:
        return list(await self.store.remove_expired(channels, farewell))


@dataclass(frozen=True, slots=True)
class Stage(ABC):
    """Two nodes of one empty store; for a store of one node, the same node twice."""

    one: Node
    two: Node

    @abstractmethod
    async def published_events(self) -> list[Publication]:
        """Returns the events since the last call, in order, as a subscriber gets them."""

    async def story(self, channel: ChannelKey = ROOM) -> list[tuple[str, str | None]]:
        """Returns the events of one channel as (type, user)."""
        return [(one.type, one.sender) for one in await self.published_events() if one.channel == channel]


class Staged(ABC):
    """Opens the store of a suite."""

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[Stage]:
        """Returns an empty store that publishes events of at most `MAX_TOLD` users."""

    @pytest.fixture
    async def stage(self) -> AsyncIterator[Stage]:
        async with self.opened() as stage:
            yield stage

    @pytest.fixture
    def node(self, stage: Stage) -> Node:
        return stage.one


class PresenceSuite(Staged):
    """One subclass for each implementation."""

    async def test_user_joins_with_first_connection_and_leaves_with_last(self, node: Node) -> None:
        assert await node.join(ROOM, "ann", "c-1") == (True, 1, True)
        assert await node.join(ROOM, "ann", "c-2") == (False, 1, False)
        assert await node.leave(ROOM, "ann", "c-1") == (False, 1, False)
        assert await node.leave(ROOM, "ann", "c-2") == (True, 0, True)
        assert await node.join(ROOM, "ann", "c-3") == (True, 1, True)

    async def test_presence_calls_started_outside_of_task_succeed(self, node: Node) -> None:
        async with asyncio.timeout(10):
            assert await Begun(node.join(ROOM, "ann", "c-1")) == (True, 1, True)
            assert await Begun(node.store.members(ROOM, 10)) == (1, [Member("ann", 1)])
            assert await Begun(node.store.count(ROOM)) == 1
            assert await Begun(node.leave(ROOM, "ann", "c-1")) == (True, 0, True)

    async def test_join_and_leave_publish_one_event_each(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1")
        await node.join(ROOM, "ann", "c-2")
        await node.leave(ROOM, "ann", "c-1")
        await node.leave(ROOM, "ann", "c-3")
        await node.leave(ROOM, "ann", "c-2")
        assert await stage.published_events() == [event(JOINED, ROOM, "ann"), event(LEFT, ROOM, "ann")]

    async def test_join_in_channel_with_many_users_publishes_nothing(self, stage: Stage) -> None:
        node = stage.one
        for number in range(1, MAX_TOLD + 1):
            assert await node.join(ROOM, f"u-{number}", "c-1") == (True, number, True)
        assert await node.join(ROOM, "one-more", "c-1") == (True, MAX_TOLD + 1, False)
        assert await node.join(ROOM, "and-another", "c-1") == (True, MAX_TOLD + 2, False)
        assert await node.leave(ROOM, "one-more", "c-1") == (True, MAX_TOLD + 1, False)
        assert await node.leave(ROOM, "and-another", "c-1") == (True, MAX_TOLD, True)
        assert await stage.story() == [
            *((JOINED, f"u-{number}") for number in range(1, MAX_TOLD + 1)),
            (LEFT, "and-another"),
        ]

    async def test_join_of_known_connection_changes_nothing(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1", b'{"n":1}')
        assert await node.join(ROOM, "ann", "c-1", b'{"n":2}') == (False, 1, False)
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":1}')])
        assert await node.leaves(ROOM, "ann", "c-1")
        assert await stage.story() == [(JOINED, "ann"), (LEFT, "ann")]

    async def test_leave_of_unknown_connection_changes_nothing(self, node: Node) -> None:
        assert not await node.leaves(ROOM, "ann", "c-1")
        await node.join(ROOM, "ann", "c-1")
        assert not await node.leaves(ROOM, "ann", "c-2")
        assert not await node.leaves(ROOM, "ben", "c-1")
        assert not await node.leaves(OTHER_ROOM, "ann", "c-1")
        assert await node.leaves(ROOM, "ann", "c-1")
        assert not await node.leaves(ROOM, "ann", "c-1")
        assert await node.store.count(ROOM) == 0

    async def test_members_are_counted_by_user_and_sorted_by_name(self, node: Node) -> None:
        for user, connection in (("eve", "c-1"), ("ann", "c-2"), ("ben", "c-3"), ("ann", "c-4"), ("dan", "c-5")):
            await node.join(ROOM, user, connection)
        assert await node.store.count(ROOM) == 4
        assert await node.store.members(ROOM, 3) == (4, [Member("ann", 2), Member("ben", 1), Member("dan", 1)])
        assert [member.user for member in (await node.store.members(ROOM, 10))[1]] == ["ann", "ben", "dan", "eve"]

    async def test_members_have_any_user_name_unchanged(self, node: Node) -> None:
        users = sorted(["a b", "{ann}", "ann:ben", "*", "é", "\U0001f30a", "0", "%s"])
        for user in users:
            assert await node.joins(ROOM, user, "c-1")
        assert [member.user for member in (await node.store.members(ROOM, 10))[1]] == users
        assert list(await node.store.renew([PresenceEntry(ROOM, user, "c-1") for user in users])) == []
        for user in users:
            assert await node.leaves(ROOM, user, "c-1")
        assert await node.store.count(ROOM) == 0

    async def test_info_is_that_of_newest_token_until_user_leaves(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1", b'{"n":1}')
        assert await node.join(ROOM, "ann", "c-2", b'{"n":2}') == (False, 1, True), "what is shown has changed"
        assert await node.store.members(ROOM, 1) == (1, [Member("ann", 2, b'{"n":2}')])
        assert await node.leave(ROOM, "ann", "c-2") == (False, 1, False)
        assert await node.store.members(ROOM, 1) == (1, [Member("ann", 1, b'{"n":2}')])
        await node.leaves(ROOM, "ann", "c-1")
        await node.join(ROOM, "ann", "c-3")
        assert await node.store.members(ROOM, 1) == (1, [Member("ann", 1)])
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ann"), (LEFT, "ann"), (JOINED, "ann")]

    async def test_join_with_same_info_or_none_publishes_nothing(self, stage: Stage) -> None:
        for connection, info in (("c-1", b'{"n":1}'), ("c-2", b'{"n":1}'), ("c-3", None), ("c-1", b'{"n":2}')):
            await stage.one.join(ROOM, "ann", connection, info)
        assert await stage.one.store.members(ROOM, 10) == (1, [Member("ann", 3, b'{"n":1}')])
        assert await stage.story() == [(JOINED, "ann")]

    async def test_join_of_later_connection_with_first_info_publishes(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        assert await stage.one.join(ROOM, "ann", "c-2", b"{}") == (False, 1, True)
        assert await stage.one.store.members(ROOM, 10) == (1, [Member("ann", 2, b"{}")])
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ann")]

    async def test_join_of_many_connections_with_new_info_publishes_once(self, stage: Stage) -> None:
        node = stage.one
        for connection in ("c-1", "c-2", "c-3"):
            await node.join(ROOM, "ann", connection, b'{"n":1}')
        await stage.published_events()
        changes = [await node.update(ROOM, "ann", connection, b'{"n":2}') for connection in ("c-1", "c-3", "c-2")]
        assert changes == [(False, 1, True), (False, 1, False), (False, 1, False)]
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 3, b'{"n":2}')])
        assert await stage.published_events() == [event(JOINED, ROOM, "ann")]
        for connection in ("c-1", "c-2"):
            await node.leave(ROOM, "ann", connection)
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":2}')])

    async def test_update_removes_and_restores_info(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1", b'{"n":1}')
        assert await node.update(ROOM, "ann", "c-1", None) == (False, 1, True)
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1)])
        assert await node.update(ROOM, "ann", "c-1", None) == (False, 1, False)
        assert await node.update(ROOM, "ann", "c-1", b"{}") == (False, 1, True)
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1, b"{}")])
        assert len(await stage.published_events()) == 3

    async def test_update_of_unknown_connection_changes_nothing(self, stage: Stage) -> None:
        node = stage.one
        assert await node.update(ROOM, "ann", "c-1", b"{}") is None
        await node.join(ROOM, "ann", "c-1", b'{"n":1}')
        assert await node.update(ROOM, "ann", "c-2", b"{}") is None
        assert await node.update(ROOM, "ben", "c-1", b"{}") is None
        assert await node.update(OTHER_ROOM, "ann", "c-1", b"{}") is None
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":1}')])
        assert await node.store.count(OTHER_ROOM) == 0
        assert await stage.story() == [(JOINED, "ann")]

    async def test_info_of_a_client_outlives_joins_and_connections(self, stage: Stage) -> None:
        node = stage.one
        busy = updated_info(b'{"s":"busy"}')
        await node.join(ROOM, "ann", "c-1", b'{"n":1}')
        assert await node.update(ROOM, "ann", "c-1", busy) == (False, 1, True)
        assert await node.join(ROOM, "ann", "c-2", b'{"n":2}') == (False, 1, False)
        assert await node.join(ROOM, "ann", "c-3") == (False, 1, False)
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 3, busy)])
        for connection in ("c-1", "c-3"):
            assert await node.leave(ROOM, "ann", connection) == (False, 1, False)
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1, busy)])
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ann")]
        await node.leave(ROOM, "ann", "c-2")
        await node.join(ROOM, "ann", "c-4", b'{"n":4}')
        assert await node.store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":4}')])

    async def test_newest_update_counts_whoever_has_set_the_info(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1", b'{"n":1}')
        await node.join(ROOM, "ann", "c-2", b'{"n":1}')
        for connection, info in (
            ("c-1", updated_info(b'{"n":1}')),
            ("c-2", updated_info(b"2")),
            ("c-1", updated_info(b"3")),
            ("c-2", b'{"n":4}'),
        ):
            assert await node.update(ROOM, "ann", connection, info) == (False, 1, True)
            assert await node.store.members(ROOM, 10) == (1, [Member("ann", 2, info)])

    async def test_find_all_returns_users_in_order_with_connections_and_info(self, node: Node) -> None:
        await node.join(ROOM, "a b", "c-1", b'{"n":1}')
        await node.join(ROOM, "a b", "c-2")
        await node.join(SAME_ROOM_OF_ANOTHER_TENANT, "ann", "c-3")
        wanted = [(ROOM, "ann"), (SAME_ROOM_OF_ANOTHER_TENANT, "ann"), (ROOM, "a b"), (OTHER_ROOM, "a b")]
        assert list(await node.store.find_all(wanted)) == [
            None,
            FoundUser(frozenset({"c-3"}), frozenset(), None),
            FoundUser(frozenset({"c-1", "c-2"}), frozenset(), b'{"n":1}'),
            None,
        ]
        assert list(await node.store.find_all([])) == []

    async def test_first_info_of_a_client_stays_whoever_joins_with_another(self, node: Node) -> None:
        first, second = updated_info(b"1"), updated_info(b"2")
        assert (await node.join(ROOM, "ann", "c-1", first)).changed
        assert not (await node.join(ROOM, "ann", "c-2", second)).changed
        await node.leave(ROOM, "ann", "c-1")
        assert list(await node.store.find_all([(ROOM, "ann")])) == [FoundUser(frozenset({"c-2"}), frozenset(), first)]

    async def test_leave_all_removes_each_and_publishes_for_the_last(self, stage: Stage) -> None:
        node = stage.one
        for channel, user, connection in ((ROOM, "ann", "c-1"), (ROOM, "ann", "c-2"), (ROOM, "ben", "c-3")):
            await node.join(channel, user, connection)
        await node.join(OTHER_ROOM, "ann", "c-4")
        await stage.published_events()
        leaving = [(OTHER_ROOM, "ann", "c-4"), (ROOM, "ann", "c-1"), (ROOM, "eve", "c-9"), (ROOM, "ben", "c-3")]
        changes = await node.store.leave_all([PresenceEntry(*entry) for entry in leaving], farewell)
        assert [change.changed for change in changes] == [True, False, False, True]
        assert await stage.story() == [(LEFT, "ben")]
        assert await stage.one.store.members(ROOM, 10) == (1, [Member("ann", 1)])
        assert list(await node.store.leave_all([], farewell)) == []

    async def test_leave_all_of_expired_entries_keeps_those_that_live(self, node: Node) -> None:
        await node.join(ROOM, "ann", "c-1")
        entries = [PresenceEntry(ROOM, "ann", "c-1"), PresenceEntry(ROOM, "ben", "c-2")]
        assert [one.changed for one in await node.store.leave_all(entries, farewell, only_expired=True)] == [False] * 2
        assert await node.store.count(ROOM) == 1
        assert list(await node.store.expired([ROOM, OTHER_ROOM])) == []

    async def test_counts_have_the_order_of_the_channels(self, node: Node) -> None:
        for user in ("ann", "ben"):
            await node.join(ROOM, user, "c-1")
        await node.join(SAME_ROOM_OF_ANOTHER_TENANT, "ann", "c-1")
        empty = [ChannelKey("acme", f"room:{number}") for number in range(100, 350)]
        channels = [OTHER_ROOM, ROOM, *empty, SAME_ROOM_OF_ANOTHER_TENANT, ROOM]
        assert list(await node.store.counts(channels)) == [0, 2, *[0] * len(empty), 1, 2]
        assert list(await node.store.counts([])) == []

    async def test_update_in_channel_with_many_users_publishes_nothing(self, stage: Stage) -> None:
        for number in range(MAX_TOLD + 1):
            await stage.one.join(ROOM, f"u-{number}", "c-1")
        await stage.published_events()
        assert await stage.one.update(ROOM, "u-0", "c-1", b"{}") == (False, MAX_TOLD + 1, False)
        assert await stage.published_events() == []

    async def test_members_of_empty_channel_are_none(self, node: Node) -> None:
        assert await node.store.count(ROOM) == 0
        count, members = await node.store.members(ROOM, 10)
        assert (count, list(members)) == (0, [])

    async def test_members_of_other_channels_and_tenants_are_apart(self, stage: Stage) -> None:
        node = stage.one
        for channel in (ROOM, OTHER_ROOM, SAME_ROOM_OF_ANOTHER_TENANT):
            assert await node.joins(channel, "ann", "c-1")
        assert await node.leaves(ROOM, "ann", "c-1")
        rooms = (ROOM, OTHER_ROOM, SAME_ROOM_OF_ANOTHER_TENANT)
        assert [await node.store.count(key) for key in rooms] == [0, 1, 1]
        assert [one.channel for one in await stage.published_events()] == [*rooms, ROOM]

    async def test_join_all_adds_many_connections(self, stage: Stage) -> None:
        entrances = [entrance(room, user, "c-1") for room in (ROOM, OTHER_ROOM) for user in ("ann", "ben", "ann")]
        changes = await stage.one.store.join_all(entrances)
        assert [tuple(change) for change in changes] == [(True, 1, True), (True, 2, True), (False, 2, False)] * 2
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ben")]
        assert list(await stage.one.store.join_all([])) == []

    async def test_renew_returns_missing_entries(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1")
        await node.join(ROOM, "ann", "c-2")
        await node.join(OTHER_ROOM, "ben", "c-3")
        there = [
            PresenceEntry(ROOM, "ann", "c-1"),
            PresenceEntry(OTHER_ROOM, "ben", "c-3"),
            PresenceEntry(ROOM, "ann", "c-2"),
        ]
        missing = [
            PresenceEntry(ROOM, "ann", "c-9"),
            PresenceEntry(ROOM, "ben", "c-3"),
            PresenceEntry(SAME_ROOM_OF_ANOTHER_TENANT, "ann", "c-1"),
        ]
        assert list(await node.store.renew(there)) == []
        assert sorted(await node.store.renew([missing[0], *there, *missing[1:]])) == sorted(missing)
        assert list(await node.store.renew([])) == []
        assert await stage.story() == [(JOINED, "ann")]

    async def test_remove_expired_keeps_live_entries(self, stage: Stage) -> None:
        node = stage.one
        await node.join(ROOM, "ann", "c-1")
        assert await node.sweep(ROOM, OTHER_ROOM) == []
        assert await node.sweep() == []
        assert await node.store.count(ROOM) == 1
        assert await stage.story() == [(JOINED, "ann")]

    @given(steps=STEPS)
    @_UNHURRIED
    async def test_join_and_leave_alternate_in_any_order_of_calls(
        self, steps: list[tuple[bool, ChannelKey, str, str]]
    ) -> None:
        async with self.opened() as stage:
            node = stage.one
            there: defaultdict[tuple[ChannelKey, str], set[str]] = defaultdict(set)
            story: list[tuple[ChannelKey, str, str]] = []
            for joins, channel, user, connection in steps:
                connections = there[channel, user]
                if joins:
                    first = not connections
                    connections.add(connection)
                    assert await node.joins(channel, user, connection) is first
                    story += [(channel, JOINED, user)] * first
                else:
                    last = connections == {connection}
                    connections.discard(connection)
                    assert await node.leaves(channel, user, connection) is last
                    story += [(channel, LEFT, user)] * last
                for key in (ROOM, SAME_ROOM_OF_ANOTHER_TENANT):
                    expected = [Member(name, len(there[key, name])) for name in ("ann", "ben") if there[key, name]]
                    assert await node.store.members(key, 10) == (len(expected), expected)
                    assert await node.store.count(key) == len(expected)
            assert [(one.channel, one.type, one.sender) for one in await stage.published_events()] == story

    @given(steps=HASTE)
    @_UNHURRIED
    async def test_join_and_leave_events_alternate_under_concurrency(self, steps: list[tuple[int, bool, str]]) -> None:
        async with self.opened() as stage:
            nodes = (stage.one, stage.two)
            changes = await asyncio.gather(
                *(
                    # Each node has connections of its own.
                    (nodes[which].join if joins else nodes[which].leave)(ROOM, "ann", f"{connection}-{which}")
                    for which, joins, connection in steps
                )
            )
            kinds = [kind for kind, _ in await stage.story()]
            assert kinds == [(JOINED, LEFT)[index % 2] for index in range(len(kinds))]
            assert len(kinds) == sum(change.published for change in changes)
            assert await stage.one.store.count(ROOM) == len(kinds) % 2


class SharedPresenceSuite(PresenceSuite):
    """Guarantees between the nodes of one store."""

    @abstractmethod
    async def lose_data(self, stage: Stage) -> None:
        """Empties the store."""

    async def test_join_with_new_info_on_two_nodes_publishes_once(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        await stage.two.join(ROOM, "ann", "c-2")
        await asyncio.gather(stage.one.update(ROOM, "ann", "c-1", b"{}"), stage.two.update(ROOM, "ann", "c-2", b"{}"))
        assert await stage.one.store.members(ROOM, 10) == (1, [Member("ann", 2, b"{}")])
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ann")]

    async def test_user_on_two_nodes_counts_once(self, stage: Stage) -> None:
        assert await stage.one.joins(ROOM, "ann", "c-1")
        assert not await stage.two.joins(ROOM, "ann", "c-2")
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 2)])
        assert not await stage.one.leaves(ROOM, "ann", "c-1")
        assert await stage.two.leaves(ROOM, "ann", "c-2")
        assert await stage.story() == [(JOINED, "ann"), (LEFT, "ann")]

    async def test_renew_after_data_loss_reports_entries_and_join_restores_them(self, stage: Stage) -> None:
        entrances = [entrance(ROOM, "ann", "c-1"), entrance(ROOM, "ben", "c-2"), entrance(OTHER_ROOM, "ann", "c-1")]
        await stage.one.store.join_all(entrances)
        await stage.two.join(ROOM, "ann", "c-3")
        await stage.published_events()
        await self.lose_data(stage)
        held = [one.entry for one in entrances]
        assert sorted(await stage.one.store.renew(held)) == sorted(held)
        assert [change.changed for change in await stage.one.store.join_all(entrances)] == [True, True, True]
        assert list(await stage.one.store.renew(held)) == []
        assert list(await stage.two.store.renew([PresenceEntry(ROOM, "ann", "c-3")])) == [
            PresenceEntry(ROOM, "ann", "c-3")
        ]
        assert not await stage.two.joins(ROOM, "ann", "c-3")
        # Published again, for clients that have read meanwhile. No leave is published of users who stayed.
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ben")]


class TimedPresenceSuite(Staged):
    """Guarantees about time. Entries expire after `TTL`."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Moves the store's time."""

    async def test_remove_expired_removes_entry_that_was_not_renewed(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        await self.advance(TTL - 1)
        assert await stage.two.sweep(ROOM) == []
        await self.advance(1.1)
        assert await stage.two.sweep(ROOM) == [(ROOM, (True, 0, True))]
        assert await stage.two.store.count(ROOM) == 0
        assert await stage.story() == [(JOINED, "ann"), (LEFT, "ann")]
        assert list(await stage.one.store.renew([PresenceEntry(ROOM, "ann", "c-1")])) == [
            PresenceEntry(ROOM, "ann", "c-1")
        ]

    async def test_renew_extends_expiry(self, stage: Stage) -> None:
        for _ in range(5):
            await stage.one.join(ROOM, "ann", "c-1")
            await self.advance(TTL / 2)
            assert list(await stage.one.store.renew([PresenceEntry(ROOM, "ann", "c-1")])) == []
        await self.advance(TTL - 1)
        assert await stage.two.sweep(ROOM) == []
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 1)])

    async def test_expired_connection_does_not_count_and_user_stays_by_another(self, stage: Stage) -> None:
        await stage.two.join(ROOM, "ann", "c-2", b'{"n":2}')
        await stage.one.join(ROOM, "ann", "c-1", b'{"n":1}')
        await self.advance(TTL / 2)
        await stage.two.store.renew([PresenceEntry(ROOM, "ann", "c-2")])
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 2, b'{"n":1}')])
        await self.advance(TTL / 2 + 1)
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":1}')]), "as was published"
        assert await stage.two.sweep(ROOM) == []
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":1}')])
        assert await stage.two.leave(ROOM, "ann", "c-2") == (True, 0, True)
        assert await stage.story() == [(JOINED, "ann"), (JOINED, "ann"), (LEFT, "ann")]

    async def test_expired_lists_entries_without_removing_them(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "a b", "c-1", updated_info(b"1"))
        await stage.one.join(ROOM, "ben", "c-2")
        await stage.one.join(OTHER_ROOM, "ann", "c-3")
        await self.advance(TTL / 2)
        await stage.two.join(ROOM, "ben", "c-4")
        await stage.two.store.renew([PresenceEntry(OTHER_ROOM, "ann", "c-3")])
        assert list(await stage.two.store.expired([ROOM, OTHER_ROOM])) == []
        await self.advance(TTL / 2 + 1)
        for _ in range(2):
            assert sorted(await stage.two.store.expired([ROOM, OTHER_ROOM])) == [
                ExpiredEntry(PresenceEntry(ROOM, "a b", "c-1"), updated_info(b"1"), True),
                ExpiredEntry(PresenceEntry(ROOM, "ben", "c-2"), None, False),
            ]
        found = await stage.two.store.find_all([(ROOM, "a b"), (ROOM, "ben")])
        assert found == [
            FoundUser(frozenset(), frozenset({"c-1"}), updated_info(b"1")),
            FoundUser(frozenset({"c-4"}), frozenset({"c-2"}), None),
        ]

    async def test_expired_names_the_last_only_with_all_connections_of_the_user(self, stage: Stage) -> None:
        for connection in range(3):
            await stage.one.join(ROOM, "ann", f"c-{connection}")
            await stage.one.join(ROOM, "ben", f"c-{connection}")
        await stage.one.store.join_all([entrance(ROOM, "eve", f"c-{number}") for number in range(700)])
        await self.advance(TTL + 1)
        expired = await stage.two.store.expired([ROOM])
        assert {one.entry.user: one.is_last for one in expired if one.entry.user != "eve"} == {"ann": True, "ben": True}
        of_eve = [one for one in expired if one.entry.user == "eve"]
        assert {one.is_last for one in of_eve} == {len(of_eve) == 700}

    async def test_leave_all_of_expired_entries_removes_only_them(self, stage: Stage) -> None:
        for user in ("ann", "ben", "eve"):
            await stage.one.join(ROOM, user, "c-1")
        await self.advance(TTL / 2)
        await stage.one.store.renew([PresenceEntry(ROOM, "ben", "c-1")])
        await self.advance(TTL / 2 + 1)
        entries = [PresenceEntry(ROOM, user, "c-1") for user in ("ann", "ben")]
        changes = [await stage.two.store.leave_all(entries, farewell, only_expired=True) for _ in range(2)]
        assert [[one.changed for one in some] for some in changes] == [[True, False], [False, False]]
        assert [one.entry.user for one in await stage.two.store.expired([ROOM])] == ["eve"]
        assert (await stage.story())[3:] == [(LEFT, "ann")]

    async def test_update_does_not_extend_expiry(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        await self.advance(TTL - 1)
        await stage.one.update(ROOM, "ann", "c-1", b"{}")
        await self.advance(2)
        assert await stage.two.sweep(ROOM) == [(ROOM, (True, 0, True))]

    async def test_join_before_removal_of_expired_entry_publishes_nothing(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        await self.advance(TTL + 1)
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 1)]), "no other info was published"
        assert not await stage.two.joins(ROOM, "ann", "c-2")
        assert await stage.two.sweep(ROOM) == []
        assert await stage.two.store.members(ROOM, 10) == (1, [Member("ann", 1)])
        assert await stage.story() == [(JOINED, "ann")]

    async def test_renew_of_expired_entry_before_removal_succeeds(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        await self.advance(TTL + 1)
        assert list(await stage.one.store.renew([PresenceEntry(ROOM, "ann", "c-1")])) == []
        assert await stage.two.sweep(ROOM) == []
        assert await stage.story() == [(JOINED, "ann")]

    async def test_remove_expired_on_two_nodes_publishes_once(self, stage: Stage) -> None:
        for number in range(MAX_TOLD):
            await stage.one.join(ROOM, f"u-{number}", "c-1")
            await stage.one.join(ROOM, f"u-{number}", "c-2")
        await stage.published_events()
        await self.advance(TTL + 1)
        swept = await asyncio.gather(*(node.sweep(ROOM, OTHER_ROOM) for node in (stage.one, stage.two) * 3))
        assert sum(map(len, swept)) == MAX_TOLD
        assert sorted(await stage.story()) == [(LEFT, f"u-{number}") for number in range(MAX_TOLD)]

    async def test_remove_expired_by_killed_node_is_continued_by_another(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1")
        await self.advance(TTL + 1)

        def dies(channel: ChannelKey, user: str) -> Publication:
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            await stage.one.store.remove_expired([ROOM], dies)
        assert await stage.two.sweep(ROOM) == [], "one node works at a time"
        await self.advance(TTL / 6)
        assert await stage.two.sweep(ROOM) == [(ROOM, (True, 0, True))]

    async def test_remove_expired_in_channel_with_many_users_publishes_nothing(self, stage: Stage) -> None:
        for number in range(MAX_TOLD + 2):
            await stage.one.join(ROOM, f"u-{number}", "c-1")
        await stage.published_events()
        await self.advance(TTL + 1)
        changes = [change for _, change in await stage.two.sweep(ROOM)]
        assert [change.published for change in changes] == [False] + [True] * (MAX_TOLD + 1)
        assert len(await stage.story()) == MAX_TOLD + 1

    async def test_presence_keys_expire_without_renewal(self, stage: Stage) -> None:
        await stage.one.join(ROOM, "ann", "c-1", b"{}")
        await self.advance(2 * TTL + 1)
        assert await stage.one.store.count(ROOM) == 0
        assert await stage.one.store.members(ROOM, 10) == (0, [])
