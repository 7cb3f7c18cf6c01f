"""What must pass a proxy as it is: TLS outside, the client's address, refusals, large messages, close codes."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from service.web.problem import MAX_RETRY_AFTER
from tests.e2e.engine import Engine
from tests.e2e.front import Front, rendered, settings_of
from tests.e2e.programs import need
from tests.e2e.stand import DEADLINE, ENGINES, PROTOCOL, Visitor, nodes, running, visiting
from tests.faults.node import Node
from tests.faults.stage import seconds_until
from tests.stores.certificates import Certificates
from tests.stores.process import HOST
from tests.stores.redis_server import RedisServer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.parametrize(
        ("kind", "preset"),
        [
            pytest.param(kind, preset, id=f"{kind.program}-{preset.partition(' ')[2]}")
            for kind in ENGINES
            for preset in kind.presets
        ],
    ),
]

MESSAGE = 65_536
"""Bytes of the largest message: docs/protocol.md, Limits."""
PAD = 60_000
EVENTS = 4
CAP = 2
LEAVING = 3
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": PROTOCOL,
}
"""Headers of an upgrade, for clients that want to see the whole refusal."""


@dataclass
class Behind:
    """A node behind a proxy with TLS."""

    redis: RedisServer
    node: Node
    front: Front
    trusting: ssl.SSLContext

    def visitor(self, http: aiohttp.ClientSession, user: str = "ann") -> Visitor:
        """A browser that trusts the proxy's certificate."""
        return Visitor(http, self.front.port, self.trusting, user)


@asynccontextmanager
async def behind(
    kind: type[Engine], preset: str, folder: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Behind]:
    """One node with the hops that the chart sets, behind the proxy as the chart's preset has it."""
    need(kind.program)
    documents = rendered(preset, 3600, 25.0)
    hops = settings_of(documents)["proxy"]["hops"]
    certificates = Certificates(folder)
    async with (
        RedisServer() as redis,
        nodes(redis.url, {"PROXY__HOPS": str(hops), **(settings or {})}) as [node],
        running([kind([Front(preset, documents, [node.port], tls=True)], certificates)]) as [engine],
    ):
        yield Behind(redis, node, engine.fronts[0], ssl.create_default_context(cafile=str(certificates.ca)))


async def test_tls_ends_at_the_proxy(kind: type[Engine], preset: str, tmp_path: Path) -> None:
    async with behind(kind, preset, tmp_path) as stand, visiting() as http:
        visitor = stand.visitor(http)
        guest = await visitor.come()
        await guest.send(type="ping", id="p-1")
        await guest.expect("pong", id="p-1")
        await guest.leave()
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await Visitor(http, stand.front.port, ssl.create_default_context()).come()
        # Browsers speak HTTP/2 to such a proxy; their WebSockets take a connection of their own, with HTTP/1.1.
        stand.trusting.set_alpn_protocols(["h2", "http/1.1"])
        reader, writer = await asyncio.open_connection(HOST, stand.front.port, ssl=stand.trusting)
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.transport.abort()
        await asyncio.gather(reader.read(), return_exceptions=True)
        assert chosen == "h2"
        # Nothing but the public paths is led to the nodes.
        stand.trusting.set_alpn_protocols(["http/1.1"])
        assert (await visitor.get("/ws"))[0] == 426
        assert (await visitor.get("/api/v1/channels"))[0] == 404


async def test_limits_count_the_client_and_not_the_proxy(kind: type[Engine], preset: str, tmp_path: Path) -> None:
    told = {"LIMITS__CONNECTIONS_PER_IP": str(CAP)}
    async with behind(kind, preset, tmp_path, told) as stand:
        guests = []
        for address in ("127.0.0.2", "127.0.0.3"):
            connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
            async with aiohttp.ClientSession(connector=connector) as http:
                visitor = stand.visitor(http)
                guests = [await visitor.come(**{"X-Forwarded-For": f"198.51.100.{lie}"}) for lie in range(CAP)]
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await visitor.come(**{"X-Forwarded-For": "198.51.100.9"})
                assert refused.value.status == 429
                assert refused.value.headers is not None
                assert int(refused.value.headers["Retry-After"]) >= 1
                for guest in guests:
                    await guest.leave()
        assert guests


async def test_refusals_pass_as_they_are(kind: type[Engine], preset: str, tmp_path: Path) -> None:
    told = {"BROKER__TIMEOUT": "1", "ROLLOUT__DRAIN_RATE": "0.5"}
    async with behind(kind, preset, tmp_path, told) as stand, visiting() as http:
        visitor = stand.visitor(http)
        direct = Visitor(http, stand.node.port)
        wrong = {**UPGRADE, "Authorization": "Bearer nonsense"}
        status, headers, body = await visitor.get(**wrong)
        assert (status, json.loads(body)["code"]) == (401, "invalid_token")
        assert body == (await direct.get(**wrong))[2]
        assert headers["Content-Type"] == "application/problem+json"
        # A node that drains, behind a proxy that has not noticed: it takes a while, as its clients leave one by one.
        guests = [await visitor.come() for _ in range(LEAVING)]
        stand.node.signal(signal.SIGTERM)

        async def drains() -> bool:
            return (await visitor.get())[0] == 503

        assert await seconds_until(drains, monotonic(), DEADLINE) is not None
        status, headers, body = await visitor.get(**UPGRADE)
        assert (status, json.loads(body)["code"]) == (503, "draining")
        assert int(headers["Retry-After"]) >= 1
        async with asyncio.timeout(DEADLINE):
            assert await asyncio.gather(*(guest.gone() for guest in guests)) == [1012] * LEAVING


async def test_store_outage_shows_on_the_dashboard(kind: type[Engine], preset: str, tmp_path: Path) -> None:
    async with behind(kind, preset, tmp_path, {"BROKER__TIMEOUT": "1"}) as stand, visiting() as http:
        stand.redis.kill()
        status, headers, body = await stand.visitor(http).get("/ws?ticket=unknown", **UPGRADE)
        assert (status, json.loads(body)["code"]) == (503, "broker_unavailable")
        assert 1 <= int(headers["Retry-After"]) <= MAX_RETRY_AFTER


async def test_large_messages_and_close_codes_pass(kind: type[Engine], preset: str, tmp_path: Path) -> None:
    async with behind(kind, preset, tmp_path) as stand, visiting() as http:
        guest = await stand.visitor(http).come()
        await guest.send(type="ready")
        await guest.send(type="subscribe", id="s-1", channel="hall:1")
        await guest.expect("subscribed", id="s-1")
        pads = [str(number) * PAD for number in range(EVENTS)]
        for number, pad in enumerate(pads):
            status, _ = await stand.node.api(
                "red", "POST", "channels/hall:1/events", {"type": "talk.line", "data": {"pad": pad}}
            )
            assert status == 200
            assert (await guest.expect("talk.line", offset=number + 1))["data"]["pad"] == pad
        await guest.send(type="history", id="h-1", channel="hall:1")
        page = await guest.expect("history", id="h-1")
        assert [event["data"]["pad"] for event in page["events"]] == pads
        largest = {"type": "talk.line", "id": "m-1", "channel": "hall:1", "data": {"pad": ""}}
        largest["data"] = {"pad": "x" * (MESSAGE - len(json.dumps(largest)))}
        await guest.ws.send_str(json.dumps(largest))
        await guest.expect("ack", id="m-1")
        await guest.ws.send_str(json.dumps(largest) + " ")
        async with asyncio.timeout(DEADLINE):
            assert await guest.gone() == 1009
        again = await stand.visitor(http).come()
        status, _ = await stand.node.api("red", "POST", "users/ann/disconnect")
        assert status == 200
        async with asyncio.timeout(DEADLINE):
            assert await again.gone() == 4403
