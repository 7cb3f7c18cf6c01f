"""What every PresenceStore owes (service/core/presence.py), as tests. A subclass says how to open one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.channel import ChannelKey
from service.core.presence import Member, PresenceStore

ROOM = ChannelKey("acme", "room:1")
OTHER_ROOM = ChannelKey("acme", "room:2")
SAME_ROOM_OF_ANOTHER_TENANT = ChannelKey("other", "room:1")

STEPS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([ROOM, SAME_ROOM_OF_ANOTHER_TENANT]),
        st.sampled_from(["ann", "ben"]),
        st.sampled_from(["c-1", "c-2", "c-3"]),
    ),
    max_size=40,
)


class PresenceSuite(ABC):
    """Subclassed once per implementation."""

    @abstractmethod
    async def open(self) -> PresenceStore:
        """An empty store."""

    @pytest.fixture
    async def store(self) -> PresenceStore:
        return await self.open()

    async def test_a_user_joins_with_the_first_connection_and_leaves_with_the_last(self, store: PresenceStore) -> None:
        assert await store.join(ROOM, "ann", "c-1", None)
        assert not await store.join(ROOM, "ann", "c-2", None)
        assert not await store.leave(ROOM, "ann", "c-1")
        assert await store.leave(ROOM, "ann", "c-2")
        assert await store.join(ROOM, "ann", "c-3", None)

    async def test_adding_a_connection_again_changes_nothing(self, store: PresenceStore) -> None:
        await store.join(ROOM, "ann", "c-1", b'{"n":1}')
        assert not await store.join(ROOM, "ann", "c-1", b'{"n":2}')
        assert await store.members(ROOM, 10) == (1, [Member("ann", 1, b'{"n":1}')])
        assert await store.leave(ROOM, "ann", "c-1")

    async def test_a_connection_that_was_not_there_does_not_leave(self, store: PresenceStore) -> None:
        assert not await store.leave(ROOM, "ann", "c-1")
        await store.join(ROOM, "ann", "c-1", None)
        assert not await store.leave(ROOM, "ann", "c-2")
        assert not await store.leave(ROOM, "ben", "c-1")
        assert not await store.leave(OTHER_ROOM, "ann", "c-1")
        assert await store.leave(ROOM, "ann", "c-1")
        assert not await store.leave(ROOM, "ann", "c-1")
        assert await store.count(ROOM) == 0

    async def test_the_number_counts_users_and_members_come_by_name(self, store: PresenceStore) -> None:
        for user, connection in (("eve", "c-1"), ("ann", "c-2"), ("ben", "c-3"), ("ann", "c-4"), ("dan", "c-5")):
            await store.join(ROOM, user, connection, None)
        assert await store.count(ROOM) == 4
        assert await store.members(ROOM, 3) == (4, [Member("ann", 2), Member("ben", 1), Member("dan", 1)])
        assert [member.user for member in (await store.members(ROOM, 10))[1]] == ["ann", "ben", "dan", "eve"]

    async def test_info_is_that_of_the_newest_connection(self, store: PresenceStore) -> None:
        await store.join(ROOM, "ann", "c-1", b'{"n":1}')
        await store.join(ROOM, "ann", "c-2", b'{"n":2}')
        assert await store.members(ROOM, 1) == (1, [Member("ann", 2, b'{"n":2}')])
        await store.leave(ROOM, "ann", "c-2")
        assert await store.members(ROOM, 1) == (1, [Member("ann", 1, b'{"n":1}')])

    async def test_an_empty_channel_has_nobody(self, store: PresenceStore) -> None:
        assert await store.count(ROOM) == 0
        count, members = await store.members(ROOM, 10)
        assert (count, list(members)) == (0, [])

    async def test_channels_and_tenants_are_apart(self, store: PresenceStore) -> None:
        for channel in (ROOM, OTHER_ROOM, SAME_ROOM_OF_ANOTHER_TENANT):
            assert await store.join(channel, "ann", "c-1", None)
        assert await store.leave(ROOM, "ann", "c-1")
        assert [await store.count(key) for key in (ROOM, OTHER_ROOM, SAME_ROOM_OF_ANOTHER_TENANT)] == [0, 1, 1]

    @given(steps=STEPS)
    @settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None)
    async def test_exactly_one_join_is_reported_between_two_leaves(
        self, steps: list[tuple[bool, ChannelKey, str, str]]
    ) -> None:
        store = await self.open()
        there: defaultdict[tuple[ChannelKey, str], set[str]] = defaultdict(set)
        for joins, channel, user, connection in steps:
            connections = there[channel, user]
            if joins:
                first = not connections
                connections.add(connection)
                assert await store.join(channel, user, connection, None) is first
            else:
                last = connections == {connection}
                connections.discard(connection)
                assert await store.leave(channel, user, connection) is last
            for key in (ROOM, SAME_ROOM_OF_ANOTHER_TENANT):
                expected = [Member(name, len(there[key, name])) for name in ("ann", "ben") if there[key, name]]
                assert await store.members(key, 10) == (len(expected), expected)
                assert await store.count(key) == len(expected)
