"""Who is connected, by id and by user; and the ids of those that nobody has named."""

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
class Someone:
    """Of a connection, what a roster looks at."""

    id: str
    session: Session


def someone(id: str, user: str, tenant: str = "acme") -> Connection:
    return cast(Connection, Someone(id, Session(Identity(tenant, user), 1)))


def test_a_users_connections_oldest_first() -> None:
    registry = ConnectionRegistry(Metrics())
    one, two, three = (someone(id, "ann") for id in ("1", "2", "3"))
    others = someone("4", "bob"), someone("5", "ann", "other")
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
    four = someone("6", "ann")
    registry.add(four)
    assert registry.of_user("acme", "ann") == (two, four)
    for connection in (two, four, *others):
        registry.remove(connection)
    assert (len(registry), list(registry), registry.of_user("acme", "ann")) == (0, [], ())


def test_a_lone_connection_that_goes_takes_nobody_along() -> None:
    registry = ConnectionRegistry(Metrics())
    one, two = someone("1", "ann"), someone("2", "ann")
    registry.add(one)
    registry.remove(two)  # never entered
    assert registry.of_user("acme", "ann") == (one,)
    registry.remove(one)
    registry.add(two)
    registry.remove(one)
    assert (registry.of_user("acme", "ann"), registry.get("2"), registry.get("1")) == ((two,), two, None)


async def test_empty_once_all_have_gone() -> None:
    registry = ConnectionRegistry(Metrics())
    one, two = someone("1", "ann"), someone("2", "ann")
    registry.add(one)
    registry.add(two)
    registry.remove(one)
    waiting = registry.wait_empty()
    registry.remove(two)
    await waiting


def test_ids_are_of_96_bits_and_no_two_alike() -> None:
    ids = [new_id() for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16}", id) for id in ids)


_FORKS = """
import os
from service.realtime.ids import new_id

new_id()  # some are spare now
child = os.fork()
os.write(1, b"".join(new_id().encode() + b" " for _ in range(300)))
if child:
    assert os.waitpid(child, 0) == (child, 0)
else:
    os._exit(0)
"""


def test_a_process_and_its_child_give_different_ids() -> None:
    # In a process of its own: this one may have threads, and those do not like forks.
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, check=True, timeout=60)
    ids = done.stdout.split()
    assert len(set(ids)) == len(ids) == 600


def test_a_channels_key_is_shared() -> None:
    name = "room:" + str(7)
    assert channel_key("acme", name) is channel_key("acme", "".join(["room:", "7"]))
    assert channel_key("acme", name) == ChannelKey("acme", name) != channel_key("other", name)
