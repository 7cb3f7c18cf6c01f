"""The registry of connections; and ids."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import cast

from service.core.channel import ChannelKey, channel_key
from service.core.identity import Identity
from service.core.session import Session
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.ids import new_id
from service.telemetry.metrics import Metrics


@dataclass(eq=False)
class FakeConnection:
    """The part of a connection that the registry reads."""

    id: str
    session: Session


def fake_connection(id: str, user: str, tenant: str = "acme") -> Connection:
    return cast(Connection, FakeConnection(id, Session(Identity(tenant, user))))


def test_of_user_returns_connections_oldest_first() -> None:
    registry = ConnectionRegistry(Metrics())
    one, two, three = (fake_connection(id, "ann") for id in ("1", "2", "3"))
    others = fake_connection("4", "bob"), fake_connection("5", "ann", "other")
    for connection in (one, others[0], two, others[1], three):
        registry.add(connection)
    assert registry.of_user("acme", "ann") == (one, two, three)
    assert (registry.of_user("acme", "bob"), registry.of_user("other", "ann")) == ((others[0],), (others[1],))
    assert registry.of_user("acme", "cem") == ()
    registry.remove(one)
    registry.remove(one)
    assert registry.of_user("acme", "ann") == (two, three)
    registry.remove(three)
    assert registry.of_user("acme", "ann") == (two,)
    four = fake_connection("6", "ann")
    registry.add(four)
    assert registry.of_user("acme", "ann") == (two, four)
    for connection in (two, four, *others):
        registry.remove(connection)
    assert (len(registry), list(registry), registry.of_user("acme", "ann")) == (0, [], ())


def test_remove_affects_only_that_connection() -> None:
    registry = ConnectionRegistry(Metrics())
    one, two = fake_connection("1", "ann"), fake_connection("2", "ann")
    registry.add(one)
    registry.remove(two)  # never added
    assert registry.of_user("acme", "ann") == (one,)
    registry.remove(one)
    registry.add(two)
    registry.remove(one)
    assert (registry.of_user("acme", "ann"), registry.get("2"), registry.get("1")) == ((two,), two, None)


async def test_wait_empty_returns_after_the_last_remove() -> None:
    registry = ConnectionRegistry(Metrics())
    one, two = fake_connection("1", "ann"), fake_connection("2", "ann")
    registry.add(one)
    registry.add(two)
    registry.remove(one)
    waiting = registry.wait_empty()
    registry.remove(two)
    await waiting


def test_ids_have_96_bits_and_are_unique() -> None:
    ids = [new_id() for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16}", id) for id in ids)


_FORKS = """
import os
from service.realtime.ids import new_id

new_id()  # fills the buffer of spare ids
child = os.fork()
os.write(1, b"".join(new_id().encode() + b" " for _ in range(300)))
if child:
    assert os.waitpid(child, 0) == (child, 0)
else:
    os._exit(0)
"""


def test_ids_differ_between_a_process_and_its_fork() -> None:
    # In its own process: a process with threads should not fork.
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, check=True, timeout=60)
    ids = done.stdout.split()
    assert len(set(ids)) == len(ids) == 600


def test_channel_keys_are_interned() -> None:
    name = "room:" + str(7)
    assert channel_key("acme", name) is channel_key("acme", "".join(["room:", "7"]))
    assert channel_key("acme", name) == ChannelKey("acme", name) != channel_key("other", name)
