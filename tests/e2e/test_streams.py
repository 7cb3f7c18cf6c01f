"""Streams, polls and emits behind real proxies: by preset, and as installed, with buffering and short timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp
import pytest

from tests.e2e.engine import AS_INSTALLED, Engine
from tests.e2e.envoy import Envoy
from tests.e2e.front import PLAIN, Front, rendered
from tests.e2e.nginx import Nginx
from tests.e2e.programs import need
from tests.e2e.stand import DEADLINE, ENGINES, PROTOCOL, nodes, running, visiting
from tests.faults.node import Node
from tests.faults.tokens import token
from tests.stores.process import HOST
from tests.stores.redis_server import RedisServer
from tests.support.streams import Stream

pytestmark = pytest.mark.e2e

SOON = 1.0
"""Seconds from a publish to the event at the client."""
CHANNEL = "hall:1"
LONG = 3600
"""Seconds of a preset's idle timeout."""

every_preset = pytest.mark.parametrize(
    ("kind", "preset"),
    [
        pytest.param(kind, preset, id=f"{kind.program}-{preset.partition(' ')[2]}")
        for kind in ENGINES
        for preset in kind.presets
    ],
)
every_engine = pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.program) for kind in ENGINES])


class Behind:
    """A node behind a proxy, and a client that has only HTTP."""

    def __init__(self, node: Node, port: int, http: aiohttp.ClientSession) -> None:
        self.node = node
        self.base = f"http://{HOST}:{port}"
        self.http = http
        self.headers = {"Authorization": f"Bearer {token('ann', 'red')}"}

    async def publish(self, number: int) -> float:
        """Publishes as the backend, not through the proxy. Returns the time before it."""
        before = monotonic()
        event = {"type": "talk.line", "data": {"pad": str(number)}}
        status, _ = await self.node.api("red", "POST", f"channels/{CHANNEL}/events", event)
        assert status == 200
        return before

    @asynccontextmanager
    async def stream(self, last_id: str = "") -> AsyncIterator[Stream]:
        """Opens `GET /sse`, as a browser's EventSource does."""
        headers = self.headers | ({"Last-Event-ID": last_id} if last_id else {})
        async with self.http.get(
            f"{self.base}/sse?channels={CHANNEL}", headers=headers, timeout=aiohttp.ClientTimeout()
        ) as response:
            assert response.status == 200, await response.text()
            yield Stream(response)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Posts a body through the proxy."""
        async with self.http.post(f"{self.base}{path}", json=body, headers=self.headers) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer


@asynccontextmanager
async def behind(kind: type[Engine], front: Front, heartbeat: float = 25.0) -> AsyncIterator[Behind]:
    """A node behind the proxy with one front."""
    need(kind.program)
    async with (
        RedisServer() as redis,
        nodes(redis.url, {"DEADLINES__HEARTBEAT": str(heartbeat)}) as [node],
        visiting() as http,
    ):
        front.nodes[:] = front.slots[:] = [node.port]
        async with running([kind([front])]):
            yield Behind(node, front.port, http)


@every_preset
async def test_events_pass_at_once_over_streams_and_polls(kind: type[Engine], preset: str) -> None:
    async with behind(kind, Front(preset, rendered(preset, LONG, 25.0), [])) as stand:
        async with asyncio.timeout(DEADLINE), stand.stream() as opened:
            await opened.until("subscribed")
            for number in range(3):
                published_at = await stand.publish(number)
                assert (await opened.until("talk.line"))["data"]["pad"] == str(number)
                assert monotonic() - published_at < SOON
        answer = await stand.post("/poll", {"subscriptions": [{"channel": CHANNEL}]})
        polling = asyncio.ensure_future(stand.post("/poll", {"receipt": answer["receipt"]}))
        ack = await stand.post(
            "/emit",
            {
                "type": "talk.line",
                "channel": CHANNEL,
                "id": "m-1",
                "data": {"pad": "mine"},
                "receipt": answer["receipt"],
            },
        )
        acked_at = monotonic()
        assert ack["offset"] == 4
        answer = await polling
        assert monotonic() - acked_at < SOON
        [message] = answer["messages"]
        events = message.get("events", [message])
        assert [event["id"] for event in events] == ["m-1"]


@every_engine
async def test_event_passes_a_proxy_that_buffers_within_a_second(kind: type[Engine]) -> None:
    """The proxy as installed: nginx buffers responses unless they say no."""
    front = Front(PLAIN, rendered(PLAIN, LONG, 25.0), [])
    async with behind(kind, front) as stand, asyncio.timeout(DEADLINE), stand.stream() as opened:
        await opened.until("subscribed")
        published_at = await stand.publish(1)
        await opened.until("talk.line")
        assert monotonic() - published_at < SOON


@pytest.mark.parametrize("kind", [kind for kind in ENGINES if kind is not Envoy])
async def test_comments_keep_a_stream_open_through_a_short_idle_timeout(kind: type[Engine]) -> None:
    """Not behind Envoy as installed, which bounds the whole life of a response."""
    front = Front(PLAIN, rendered(PLAIN, LONG, 25.0), [])
    async with (
        behind(kind, front, heartbeat=AS_INSTALLED / 3) as stand,
        asyncio.timeout(DEADLINE),
        stand.stream() as opened,
    ):
        await opened.until("subscribed")
        opened_at = monotonic()
        while monotonic() - opened_at < 2 * AS_INSTALLED:
            await opened.comment()
        await stand.publish(1)
        await opened.until("talk.line")


@pytest.mark.parametrize("kind", [Nginx, Envoy])
async def test_stream_that_a_proxy_cuts_again_and_again_loses_and_repeats_nothing(kind: type[Engine]) -> None:
    """As installed, with short timeouts: nginx cuts a silent stream, and Envoy every one after a time."""
    async with behind(kind, Front(PLAIN, rendered(PLAIN, LONG, 25.0), [])) as stand:
        got: list[str] = []
        last_id, cuts, published = "", 0, 0
        async with asyncio.timeout(DEADLINE):
            while cuts < 3:
                async with stand.stream(last_id) as opened:
                    try:
                        while True:
                            message = await opened.receive()
                            events = message["events"] if message["type"] == "subscribed" else [message]
                            got += [event["data"]["pad"] for event in events if event["type"] == "talk.line"]
                            if message["type"] == "subscribed":
                                await stand.publish(published)
                                published += 1
                    except (EOFError, aiohttp.ClientPayloadError):
                        last_id, cuts = opened.last_id, cuts + 1
                await stand.publish(published)  # while nobody listens
                published += 1
            async with stand.stream(last_id) as opened:
                subscribed = await opened.until("subscribed")
                got += [event["data"]["pad"] for event in subscribed["events"]]
        assert got == [str(number) for number in range(published)]


async def test_proxy_that_refuses_upgrades_passes_streams() -> None:
    """F5's controller passes upgrades only for services that an annotation names."""
    documents = rendered("ingress f5-nginx", LONG, 25.0)
    changed = [
        document
        if document["kind"] != "Ingress"
        else {
            **document,
            "metadata": {
                **document["metadata"],
                "annotations": {
                    key: value
                    for key, value in document["metadata"]["annotations"].items()
                    if key != "nginx.org/websocket-services"
                },
            },
        }
        for document in documents
    ]
    async with behind(Nginx, Front("ingress f5-nginx", changed, [])) as stand, asyncio.timeout(DEADLINE):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await stand.http.ws_connect(f"{stand.base}/ws", protocols=(PROTOCOL,), headers=stand.headers)
        assert refused.value.status == 426
        async with stand.stream() as opened:
            await opened.until("subscribed")
            await stand.publish(1)
            await opened.until("talk.line")
