"""A real service on loopback ports, and a client that speaks `tidewire.v1` frame by frame."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import jwt

from service.app import Service, running
from service.contract.load import load
from service.contract.model import Contract
from service.core.authenticator import Authenticator
from service.core.broker import Broker
from service.core.clock import Clock
from service.protocol.close import CloseCode
from service.settings import Settings
from tests.support.clock import FakeClock
from tests.support.exported import exported

SECRET = "a secret for tests, long enough for HS256"
API_KEY = "an-api-key-for-tests-0123456789"
OTHER_API_KEY = "another-api-key-for-tests-0123456"
CONTRACT = Path(__file__).parent / "contract.yaml"
DEADLINE = 20.0
"""Seconds that one step of a test may take: about a hundred times its duration on an idle machine."""

BIT = 0.25
"""Seconds of each step of `passes`. The service's check intervals are multiples of it."""


def token(user: str = "ann", *, grants: list[Any] | None = None, ttl: float = 3600, **claims: Any) -> str:
    """A token that the test service accepts. A claim that is None is left out."""
    now = time.time()
    body = {
        "iss": "tidewire",
        "aud": "tidewire",
        "sub": user,
        "iat": int(now),
        "exp": now + ttl,
        "grants": ["room:*"] if grants is None else grants,
        **claims,
    }
    return jwt.encode({k: v for k, v in body.items() if v is not None}, SECRET, algorithm="HS256")


def settings(**groups: Any) -> Settings:
    """Settings for tests: free ports, one secret, and API keys of two tenants; `groups` override them. No latency probe
    runs, because tests count descriptors and objects. The speed of the machine changes no rate."""
    base: dict[str, Any] = {
        "port": 0,
        "ops_port": 0,
        "contract": CONTRACT,
        "probe": {"interval": 0},
        "rollout": {"accept_max_lag": 60.0},
        "auth": {"secret": SECRET},
        "api": {
            "keys": [
                {"name": "tests", "key": API_KEY, "tenant": "default"},
                {"name": "others", "key": OTHER_API_KEY, "tenant": "other"},
            ]
        },
    }
    for name, value in groups.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) and name in base else value
    return Settings(**base)


@dataclass(frozen=True, slots=True)
class Running:
    """A service that listens."""

    service: Service
    url: str
    ops_url: str
    http: aiohttp.ClientSession

    async def publish(self, channel: str, event: dict[str, Any] | list[Any], key: str = API_KEY) -> dict[str, Any]:
        """Publishes as a backend; fails the test if the event is refused."""
        async with self.http.post(
            f"{self.url}/api/v1/channels/{channel}/events", json=event, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            body: dict[str, Any] = await response.json(content_type=None)
            assert response.status == 200, body
            return body

    async def metrics(self) -> dict[str, float]:
        """Returns the metrics that the ops listener exports: name{labels} → value."""
        async with self.http.get(f"{self.ops_url}/metrics") as response:
            lines = (await response.text()).splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def metric(self, name: str, **labels: str) -> float:
        """Returns the value of one sample, by its name without the prefix `tidewire_`; 0 if there is none."""
        wanted = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        return (await self.metrics()).get(f"tidewire_{name}{{{wanted}}}" if wanted else f"tidewire_{name}", 0.0)

    def hello_is_late(self) -> None:
        """Expires the handshakes of all connections without a `hello`, as at the deadline."""
        self.service.node.lifecycle.pending_handshakes.expire()

    async def at_rest(self) -> None:
        """Ends sessions between two polls, and waits until every count of connections is zero again."""
        node = self.service.node
        admission = node.admission

        def counted() -> tuple[object, ...]:
            for connection in node.streams.registry:
                if connection.transport.may_continue and not connection.session.is_ready:
                    connection.close(CloseCode.RESTART, "at rest")
            return (
                len(node.streams.registry),
                admission.slots.total,
                exported(self.service.metrics, "pending_connections"),
                admission.slots.networks,
                admission.slots.quota.scopes,
                node.streams.budget.used,
            )

        await eventually(lambda: counted() == (0, 0, 0, 0, 0, 0), counted)
        gauges = ("connections", "pending_connections", "subscriptions", "channels", "outbox_messages", "outbox_bytes")
        metrics = await self.metrics()
        assert {gauge: metrics[f"tidewire_{gauge}"] for gauge in gauges} == dict.fromkeys(gauges, 0.0)

    @asynccontextmanager
    async def client(self, user: str = "ann", **options: Any) -> AsyncIterator[Client]:
        """Returns a connected client; see `Client.open`."""
        client = await Client.open(self, user, **options)
        try:
            yield client
        finally:
            await client.close()


async def eventually(
    holds: Callable[[], bool], seen: Callable[[], object] = lambda: "", *, within: float = DEADLINE
) -> None:
    """Waits for a condition that no event reports. After `within` seconds, fails the test and shows what was `seen`."""
    try:
        async with asyncio.timeout(within):
            while not holds():  # noqa: ASYNC110  # the condition is the result of many steps that report no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it did not come within {within:g} s; last seen: {seen()}") from None


async def passes(clock: FakeClock, seconds: float) -> None:
    """Advances a service's clock as real time passes: in steps of BIT, with loop iterations in between."""
    for _ in range(round(seconds / BIT)):
        clock.advance(BIT)
        for _ in range(3):
            await asyncio.sleep(0)


@cache
def loaded(contract: Path) -> Contract:
    """The contract of a file, cached: reading it takes a third of a service's start."""
    return load(contract)


@asynccontextmanager
async def serving(
    *,
    clock: Clock | None = None,
    broker: Broker | None = None,
    authenticator: Authenticator | None = None,
    broker_settings: dict[str, Any] | None = None,
    **groups: Any,
) -> AsyncIterator[Running]:
    """Runs a service for the length of the block. `broker` replaces the one that `broker_settings` name."""
    config = settings(**groups, broker=broker_settings or {})
    assert config.contract is not None
    service = Service(config, loaded(config.contract), clock=clock, broker=broker, authenticator=authenticator)
    async with running(service) as (port, ops_port), aiohttp.ClientSession() as http:
        yield Running(service, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops_port}", http)


class Client:
    """One WebSocket. `receive` returns single messages, even if they arrived in a batch."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self._waiting: deque[dict[str, Any]] = deque()
        self._serial = 0
        self.welcome: dict[str, Any] = {}

    @classmethod
    async def open(
        cls,
        server: Running,
        user: str = "ann",
        *,
        token_: str | None = None,
        hello: bool = True,
        ready: bool = True,
        query: str = "",
        headers: dict[str, str] | None = None,
        **claims: Any,
    ) -> Client:
        """Connects. Sends `hello`, with a token for `user` (or `token_`), and `ready`, unless the arguments say
        otherwise."""
        ws = await server.http.ws_connect(
            f"{server.url}/ws{query}", protocols=("tidewire.v1",), headers=headers, max_msg_size=0
        )
        client = cls(ws)
        if hello:
            await client.send(type="hello", token=token_ or token(user, **claims))
        if hello or headers or query:
            client.welcome = await client.expect("welcome")
            if ready:
                await client.send(type="ready")
        return client

    async def send(self, **message: Any) -> None:
        """Sends one message. `from_` and `in_` are the fields `from` and `in`."""
        await self.ws.send_str(json.dumps(message))

    async def raw(self, frame: str) -> None:
        """Sends a frame unchanged."""
        await self.ws.send_str(frame)

    async def receive(self) -> dict[str, Any]:
        """Returns the next message. Fails the test if none arrives in time or the connection ends."""
        if not self._waiting:
            message = await self.ws.receive(timeout=DEADLINE)
            assert message.type is aiohttp.WSMsgType.TEXT, f"{message.type.name} {self.ws.close_code}: {message.extra}"
            content = json.loads(message.data)
            self._waiting.extend(content if isinstance(content, list) else [content])
        return self._waiting.popleft()

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Returns the next message, which must have this type and these fields."""
        message = await self.receive()
        assert message["type"] == kind, message
        for name, value in fields.items():
            assert message.get(name) == value, message
        return message

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Returns the next message that matches, and skips those before it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                message = await self.receive()
                if message["type"] == kind and all(message.get(k) == v for k, v in fields.items()):
                    return message

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Sends a request with a new id, and returns its reply. Skips other messages before it."""
        self._serial += 1
        request = f"q{self._serial}"
        await self.send(type=kind, id=request, **fields)
        async with asyncio.timeout(DEADLINE):
            while True:
                message = await self.receive()
                if message.get("id") == request and "." not in message["type"]:
                    return message

    async def subscribe(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Subscribes; fails the test if the service refuses."""
        reply = await self.ask("subscribe", channel=channel, **fields)
        assert reply["type"] == "subscribed", reply
        return reply

    async def silence(self, *, but: str = "") -> None:
        """Proves that no message is on its way, except those of the type `but`: the next message is the pong to a
        ping."""
        self._serial += 1
        await self.send(type="ping", id=f"q{self._serial}")
        while (message := await self.receive())["type"] == but:
            pass
        assert message == {"type": "pong", "id": f"q{self._serial}"}, message

    async def closed(self) -> int:
        """Waits for the close, and returns its code. Skips messages before it."""
        async with asyncio.timeout(DEADLINE * 3):
            while not self.ws.closed:
                message = await self.ws.receive()
                if message.type is aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    self._waiting.extend(content if isinstance(content, list) else [content])
        return self.ws.close_code or 0

    @property
    def received(self) -> list[dict[str, Any]]:
        """Messages that have arrived and that the test has not read."""
        return list(self._waiting)

    async def close(self) -> None:
        """Closes the connection."""
        await self.ws.close()
