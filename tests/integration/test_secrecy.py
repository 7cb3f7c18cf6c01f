"""Neither the log nor the metrics ever hold a token, a ticket, a cookie, an API key or a payload, whatever goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from service.telemetry import log
from tests.support.brokers import FaultyBroker
from tests.support.harness import API_KEY, OTHER_API_KEY, SECRET, Client, Running, eventually, serving, token
from tests.support.raw import (
    BINARY,
    CLOSE,
    HANDSHAKE,
    PING,
    TEXT,
    ask,
    bearer,
    connected,
    frame,
    new_ticket,
    text,
    upgraded,
)

PAYLOAD = "canary-payload"
"""Stands in everything a client or backend sends as data, and in everything that it sends by mistake."""
CREDENTIAL = "canary-credential"
"""Stands in everything that is offered as a credential and is none."""
NAME = "canary-name"
"""Stands in the names of channels, users and tenants: they may be logged, and are no metric's label."""
FAULT = "the broker has an injected fault"


@contextmanager
def captured(format: log.Format) -> Iterator[io.StringIO]:
    """What the service writes to its log, from the least severe line on."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    log.configure("debug", format, stream)
    try:
        yield stream
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)
        structlog.reset_defaults()


class Drive:
    """Goes every way in, and remembers each secret that it used on it."""

    def __init__(self, server: Running, broker: FaultyBroker) -> None:
        self.server = server
        self.broker = broker
        self.secrets = [SECRET, API_KEY, OTHER_API_KEY, PAYLOAD, CREDENTIAL]

    def token(self, **claims: Any) -> str:
        """A good token. Its signature alone would be enough for whoever guesses the rest."""
        made = token(f"{NAME}-user", tenant=f"{NAME}-tenant", grants=["**"], **claims)
        self.secrets += [made, *made.split(".")[1:]]
        return made

    async def upgrades(self) -> None:
        """Good and bad credentials in every place, and where none belong."""
        good, expired = self.token(), self.token(ttl=-100)
        listed: dict[str, str | None] = {"Origin": "https://app.example"}
        ticket = await new_ticket(self.server)
        self.secrets.append(ticket)
        for bad in (CREDENTIAL, f"{CREDENTIAL}.{CREDENTIAL}.{CREDENTIAL}", good[:-4], expired):
            for upgrade in (True, False):
                for headers in (
                    bearer(bad),
                    {"Authorization": f"Basic {bad}"},
                    {"Authorization": bad},
                    listed | {"Cookie": f"session={bad}; other={CREDENTIAL}"},
                    {"Origin": f"https://{bad}.example"},
                    {"Sec-WebSocket-Protocol": bad},
                    {"Sec-WebSocket-Protocol": f"{bad}, {good}"},
                    {"Sec-WebSocket-Key": bad},
                    {"Sec-WebSocket-Version": bad},
                    {"X-Forwarded-For": bad},
                ):
                    await ask(
                        self.server, f"/ws?ticket={bad}&token={bad}&access_token={good}", headers, upgrade=upgrade
                    )
                await ask(self.server, f"/ws?ticket={bad}", upgrade=upgrade)
                await ask(self.server, f"/ws?channels={bad}", bearer(good), upgrade=upgrade)
                await ask(self.server, f"/{bad}?{good}", bearer(good), upgrade=upgrade, method="POST")
            await ask(self.server, "/tickets", bearer(bad), upgrade=False, method="POST")
            client = await Client.open(self.server, hello=False)
            await client.send(type="hello", token=bad)
            assert await client.closed() == 4401
        assert (await ask(self.server, f"/ws?ticket={ticket}")).status == 101
        assert (await ask(self.server, f"/ws?ticket={ticket}")).status == 401
        assert (await ask(self.server, "/ws", listed | {"Cookie": f"session={good}"})).status == 101

    async def frames(self) -> None:
        """Every kind of message and of nonsense on an authenticated connection."""
        channel = f"room:{NAME}-channel"
        client = await Client.open(self.server, token_=self.token(), hello=True)
        await client.subscribe(channel)
        for message in (
            {"type": "chat.message", "id": "m1", "channel": channel, "data": {"text": PAYLOAD}},
            {"type": "chat.message", "id": "m2", "channel": channel, "data": {"text": 7, PAYLOAD: PAYLOAD}},
            {"type": "chat.message", "id": "m3", "channel": channel, "data": PAYLOAD},
            {"type": "chat.message", "id": PAYLOAD, "channel": PAYLOAD, "data": {}, "key": PAYLOAD},
            {"type": f"chat.{PAYLOAD}", "channel": channel, "data": {}},
            {"type": PAYLOAD},
            {"type": "subscribe", "channel": f"nowhere:{PAYLOAD}", "id": "s", PAYLOAD: PAYLOAD},
            {"type": "refresh", "id": "r1", "token": CREDENTIAL},
            {"type": "refresh", "id": "r2", "token": self.token(sub="somebody-else")},
            {"type": "refresh", "id": "r3", "token": self.token()},
            {"type": "hello", "token": self.token()},
        ):
            await client.send(**message)
        for junk in (
            PAYLOAD,
            f'{{"type":"{PAYLOAD}',
            f'["{PAYLOAD}"',
            f'"{PAYLOAD}"',
            f'[{{"{PAYLOAD}":1}}]',
            PAYLOAD * 10_000,
        ):
            await client.raw(junk)
        assert await client.closed() == 1009
        for first in (text(type="ping", id=PAYLOAD), frame(TEXT, PAYLOAD.encode()), frame(BINARY, PAYLOAD.encode())):
            async with upgraded(self.server, None) as raw:
                raw.write(first)
                assert await raw.close_code() == 4400
        for garbage in (
            frame(TEXT, PAYLOAD.encode() + b"\xff"),
            frame(PING, PAYLOAD.encode() * 20),
            frame(CLOSE, b"\x03\xed" + PAYLOAD.encode()),
            frame(CLOSE, b"\x03\xe8" + PAYLOAD.encode()),
            frame(3, PAYLOAD.encode()),
            PAYLOAD.encode(),
        ):
            async with upgraded(self.server) as raw:
                raw.write(garbage)
                await raw.close_code()

    async def requests(self) -> None:
        """The backend API, and what is hardly HTTP, on both listeners."""
        path = f"/api/v1/channels/room:{NAME}-channel/events"
        good = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json", "Idempotency-Key": PAYLOAD}
        for headers in (good, good | {"Authorization": f"Bearer {CREDENTIAL}"}, good | {"Content-Type": PAYLOAD}):
            for body in (
                {"type": "chat.message", "data": {"text": PAYLOAD}},
                {"type": "chat.message", "data": {"text": 7, PAYLOAD: PAYLOAD}},
                {"type": PAYLOAD, PAYLOAD: PAYLOAD, "data": {}},
                [{"type": "chat.message", "data": {"text": PAYLOAD}, "from": PAYLOAD}],
            ):
                await self._post(path, headers, json.dumps(body))
            await self._post(path, headers, f'{{"type":"{PAYLOAD}')
            await self._post(f"{path}?{PAYLOAD}={PAYLOAD}", headers, "{}")
            await self._post(f"/api/v1/users/{NAME}-user/disconnect", headers, json.dumps({"reason": PAYLOAD}))
        for url in (self.server.url, self.server.ops_url):
            for request in (
                f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CREDENTIAL}\0\r\n\r\n",
                f"GET / HTTP/1.1\r\nHost: x\r\n{CREDENTIAL} : x\r\n\r\n",
                f"GET /ws?{CREDENTIAL}=\x7f{CREDENTIAL} HTTP/1.1\r\nHost: x\r\n\r\n",
                f"{CREDENTIAL} / HTTP/9.9\r\n\r\n",
                f"GET / HTTP/1.1\r\nHost: x\r\n\r\n{CREDENTIAL} {CREDENTIAL}\r\n\r\n",
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
                f"Transfer-Encoding: chunked\r\n\r\n{PAYLOAD}\r\n{PAYLOAD}",
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {CREDENTIAL}\r\n\r\n{PAYLOAD}",
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
                f"Content-Length: 1000\r\n\r\n{PAYLOAD}",
                f"GET / HTTP/1.1\r\nHost: x\r\nX: {CREDENTIAL * 2000}\r\n\r\n",
            ):
                await _throw_at(url, request)

    async def faults(self) -> None:
        """What nobody foresaw, on every way that leads to the broker."""
        self.broker.faults["publish"] = RuntimeError(FAULT)
        path = "/api/v1/channels/news:1/events"
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        body = json.dumps({"type": "news.flash", "data": {"text": PAYLOAD}})
        assert await self._post(path, headers, body) == 500
        client = await Client.open(self.server, token_=self.token(), hello=True)
        fault = await client.ask("news.comment", channel="news:1", data={"text": PAYLOAD})
        assert (fault["code"], fault["retryable"]) == ("internal", True)
        assert FAULT not in json.dumps(fault), "what broke inside is for the log alone"
        assert (await client.ask("ping"))["type"] == "pong", "the connection lives on"
        await client.close()
        self.broker.faults.clear()

    async def _post(self, path: str, headers: dict[str, str], body: str) -> int:
        async with self.server.http.post(self.server.url + path, headers=headers, data=body) as response:
            return response.status


async def _throw_at(url: str, request: str) -> None:
    """Sends bytes, reads what comes for a moment, and goes away in the middle."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request.encode())
        await reader.read(65_536)
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


WAYS: dict[str, Callable[[Drive], Awaitable[None]]] = {
    "upgrades": Drive.upgrades,
    "frames": Drive.frames,
    "requests": Drive.requests,
    "faults": Drive.faults,
}


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("way", WAYS)
async def test_no_secret_and_no_payload_reaches_the_log_or_the_metrics(way: str, format: log.Format) -> None:
    free = {"per_second": 1e6, "burst": 1_000_000}
    limits = dict.fromkeys(("connection_rate", "user_rate", "ip_rate", "tenant_rate", "connect_rate_per_ip"), free)
    broker = FaultyBroker()
    tasks = len(asyncio.all_tasks())
    with captured(format) as stream:
        async with serving(
            broker=broker,
            limits=limits,
            origins=("https://app.example",),
            auth={"cookie": "session"},
            deadlines={"body": 0.2},
            outbox={"close_grace": 0.1},
            proxy={"hops": 1},
        ) as server:
            drive = Drive(server, broker)
            await WAYS[way](drive)
            async with server.http.get(f"{server.ops_url}/metrics") as response:
                metrics = await response.text()
        await eventually(lambda: len(asyncio.all_tasks()) == tasks)  # aiohttp still waits for bodies that broke off
        structlog.get_logger("test").warning("the log is heard")
        written = stream.getvalue()
    assert "the log is heard" in written
    if way == "faults":
        assert written.count("raise self.faults[name]") == 2, (
            "a fault is told to the operator, once each, with its place"
        )
        assert FAULT not in written, "not in its own words, which may quote a payload"
    for secret in drive.secrets:
        assert secret not in written, _line_with(secret, written)
        assert secret not in metrics, _line_with(secret, metrics)
    assert NAME not in metrics, _line_with(NAME, metrics)
    assert "tidewire_connections" in metrics


def _line_with(secret: str, text_: str) -> str:
    return next(line for line in text_.splitlines() if secret in line)[:2000]


async def test_invalid_http_request_does_not_fill_the_log() -> None:
    with captured("json") as stream:
        async with serving() as server:
            for _ in range(20):
                async with connected(server) as raw:
                    raw.write(b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n")
                    assert (await raw.answer()).status == 400
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line for line in lines if line["level"] in ("warning", "error") and line["logger"] != "asyncio"] == []


async def test_unknown_subprotocol_is_not_logged() -> None:
    """aiohttp warns of subprotocols that it does not know, word for word."""
    with captured("json") as stream:
        async with serving() as server:
            for offered in (CREDENTIAL, f"{CREDENTIAL}, {token()}", f"tidewire.v1, {CREDENTIAL}"):
                await ask(server, "/ws", HANDSHAKE | {"Sec-WebSocket-Protocol": offered})
        assert CREDENTIAL not in stream.getvalue()


async def test_no_metric_has_a_label_that_clients_choose() -> None:
    """Labels come from closed sets: their number does not grow with what clients send."""
    async with serving() as server:
        async with server.client(grants=["**"]) as client:
            await client.ask("chat.message", channel="room:0", data={})
            await client.ask("nonsense.0")
            before = _labels(await server.metrics())
            for number in range(1, 20):
                await client.subscribe(f"room:{number}")
                await client.ask(f"made.up{number}", channel=f"room:{number}", data={})
                await client.ask("chat.message", channel=f"room:{number}", data={"text": "x"})
        after = _labels(await server.metrics())
        grown = {name for name in after - before if (str(19) in name and "room" in name) or "made.up" in name}
        assert grown == set()
        names = {
            label.partition("=")[0] for sample in after for label in sample.partition("{")[2].rstrip("}").split(",")
        }
        assert not names & {"channel", "user", "tenant", "ip", "address", "connection", "id"}


def _labels(metrics: dict[str, float]) -> set[str]:
    return {name for name in metrics if "{" in name}
