"""An office behind one address whose node is killed: with the limits as installed everybody gets everything back from another,
beside somebody who floods, and only that one is cut."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.load.server import CONTRACT, POLL, Server, serving
from tests.support.files import as_many_as_may_be
from tests.support.harness import API_KEY, DEADLINE, SECRET, eventually, token
from tests.support.wire import ABNORMAL, Refused, Wire, connect, reader

pytestmark = pytest.mark.load

USERS, TABS, CHANNELS = 100, 5, 64
ROOMS = 4
"""Of a tab's channels, those that everybody is in, with presence. The others are its user's own."""
BACK = 20.0
"""Seconds until everybody has everything back."""
BACKOFF, LONGEST_BACKOFF = 0.5, 20.0
"""As the JavaScript client's."""
RETURNS = 20
"""Times that somebody who was cut for flooding comes back and floods again."""
NOTES = [{"id": "s", "channel": f"desk:eve-{number}"} for number in range(1_000)]
FLOODS: dict[str, list[list[dict[str, str]]]] = {
    "pings": [[{"type": "ping"}]],
    "churn": [[{"type": "subscribe", **note}, {"type": "unsubscribe", **note}] for note in NOTES],
    "leaves": [[{"type": "unsubscribe", "id": "u", "channel": "desk:nowhere"}]],
}
"""Frames that are sent again and again."""
FLOODERS_CUT = 'closes_total{code="4429"}'
CONFIG: dict[str, Any] = {
    "port": 0,
    "ops_port": 0,
    "contract": str(CONTRACT),
    "auth": {"secret": SECRET},
    "api": {"key": API_KEY},
    "deadlines": {"presence_leave": 0.2},
    "log": {"level": "info", "format": "json"},
}
"""The limits are those of an installation: they are what is tested."""


class Details(msgspec.Struct):
    retry_after: float = 0.0
    scope: str = ""


class Message(msgspec.Struct):
    """As much of a message as a tab needs."""

    type: str
    id: str | None = None
    code: str | None = None
    details: Details = msgspec.field(default_factory=Details)


read = reader(Message)


@dataclass
class Office:
    """What has happened to all tabs together."""

    port: int
    closes: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    complete: int = 0
    left: int = 0
    """Tabs that have left the first room."""
    all_complete: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self, by: int) -> None:
        """One tab more, or less, has all its channels."""
        self.complete += by
        if self.complete == USERS * TABS:
            self.all_complete.set()
        else:
            self.all_complete.clear()


class Tab:
    """A client that does what docs/protocol.md asks of one: full-jitter backoff, and the waits that it is told."""

    def __init__(self, office: Office, user: str, bearer: str) -> None:
        self._office = office
        self._bearer = bearer
        rooms = [f"room:{number}" for number in range(ROOMS)]
        self._channels = [*rooms, *(f"desk:{user}-{number}" for number in range(CHANNELS - ROOMS))]
        self._joined: set[str] = set()
        self.wire: Wire | None = None

    async def stay(self) -> None:
        """Connects, and comes back for as long as it is not cancelled."""
        attempt = 0
        while True:
            wait = random.uniform(0, min(LONGEST_BACKOFF, BACKOFF * 2**attempt))
            attempt += 1
            try:
                self.wire = await connect(self._office.port, self._text, bearer=self._bearer)
            except Refused as refused:
                self._office.refusals["upgrade"] += 1
                if refused.retry_after is not None:
                    wait = refused.retry_after + random.uniform(0, min(1.0, refused.retry_after))
            except OSError:
                pass  # nobody listens
            else:
                attempt = 0
                requests = [{"type": "subscribe", "id": name, "channel": name} for name in self._channels]
                self.wire.send(*requests, {"type": "ready"})
                self._office.closes[await self.wire.gone] += 1
                if len(self._joined) == CHANNELS:
                    self._office.changed(-1)
                self._joined.clear()
            await asyncio.sleep(wait)  # what it was asked to do, or its backoff

    def _text(self, frame: bytes) -> None:
        for message in read(frame):
            if message.type == "subscribed" and message.id is not None:
                self._joined.add(message.id)
                if len(self._joined) == CHANNELS:
                    self._office.changed(1)
            elif message.type == "unsubscribed":
                self._office.left += 1
            elif message.type == "error":
                self._office.refusals[f"{message.code} {message.details.scope}"] += 1
                assert message.id is not None, "ready is never refused"
                wait = message.details.retry_after * random.uniform(1, 2)
                asyncio.get_running_loop().call_later(wait, self._subscribe, message.id)

    def leave_room(self) -> None:
        """Leaves the first room."""
        assert self.wire is not None
        self.wire.send({"type": "unsubscribe", "id": "left", "channel": self._channels[0]})

    def cut(self) -> None:
        """Vanishes."""
        if self.wire is not None:
            self.wire.abort()

    def _subscribe(self, channel: str) -> None:
        if self.wire is not None and self.wire.is_open and channel not in self._joined:
            self.wire.send({"type": "subscribe", "id": channel, "channel": channel})


async def flood(port: int, kind: str, closes: Counter[int]) -> None:
    """Floods until it is cut, again and again."""
    bearer = token(f"eve-{kind}")
    for _ in range(RETURNS):
        try:
            wire = await connect(port, lambda frame: None, bearer=bearer)
        except (Refused, OSError):
            await asyncio.sleep(0.05)  # it does not wait for as long as it is told
            continue
        try:
            while wire.is_open:
                for frame in FLOODS[kind]:
                    wire.send(*frame)
                    await asyncio.sleep(0)
            closes[wire.code] += 1
        finally:
            wire.abort()


@asynccontextmanager
async def tasks(*coroutines: Any) -> AsyncIterator[None]:
    """Runs them until the block ends."""
    running = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        for result in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def presence(server: Server, room: str) -> tuple[int, set[int]]:
    """How many users are in a room, and the different numbers of connections that they have there."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    url = f"http://127.0.0.1:{server.port}/api/v1/channels/{room}/presence"
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as response:
        found = (await response.json())["presence"]
    return found["count"], {member["connections"] for member in found["members"]}


@pytest.fixture(autouse=True)
def enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield


async def test_office_gets_everything_back_from_another_node_and_who_floods_is_cut(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_debug(False)  # it would spend the clients' core on tracebacks
    for name in ("gone", "next"):
        (tmp_path / name).mkdir()
    async with serving(tmp_path / "gone", CONFIG) as gone, serving(tmp_path / "next", CONFIG) as node:
        office = Office(gone.port)
        bearers = {user: token(user) for user in (f"u{number}" for number in range(USERS))}
        tabs = [Tab(office, user, bearer) for user, bearer in bearers.items() for _ in range(TABS)]
        flooding: Counter[int] = Counter()
        try:
            async with tasks(*(tab.stay() for tab in tabs)):
                await asyncio.wait_for(office.all_complete.wait(), BACK)
                office.all_complete.clear()
                office.port = node.port
                gone.process.kill()
                async with tasks(*(flood(node.port, kind, flooding) for kind in FLOODS)):
                    begun = time.monotonic()
                    await asyncio.wait_for(office.all_complete.wait(), BACK)
                    took = time.monotonic() - begun
                    async with asyncio.timeout(DEADLINE):  # the office may be back before every flood has been cut
                        while (await node.metrics()).get(FLOODERS_CUT, 0) < len(FLOODS):  # noqa: ASYNC110  # as below
                            await asyncio.sleep(POLL)
            print(f"\nback after {took:.1f} s; closes {dict(office.closes)}, refused {dict(office.refusals)}")
            print(f"closes of who floods: {dict(flooding)}")
            assert office.closes == {ABNORMAL: USERS * TABS}, "each was cut once, by the end of its node"
            # One that does not stop sending may be gone before it has read why (RFC 9293 §3.10.7.4); the service counts it.
            assert set(flooding) <= {4429, ABNORMAL}
            for room in range(ROOMS):
                assert await presence(node, f"room:{room}") == (USERS, {TABS})
            for tab in tabs:
                tab.leave_room()
            await eventually(lambda: office.left == len(tabs))
            async with asyncio.timeout(DEADLINE):
                while await presence(node, "room:0") != (0, set()):  # noqa: ASYNC110  # another process tells of nothing
                    await asyncio.sleep(POLL)
        finally:
            for tab in tabs:
                tab.cut()
        assert await node.is_empty() == {}
        assert await node.deaths() == 0
