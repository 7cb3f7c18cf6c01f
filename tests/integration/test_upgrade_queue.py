"""Both ways to a WebSocket, UpgradeQueue and aiohttp's route: the same responses, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from service.web.http.http_connections import CHECK_INTERVAL
from service.web.ws.upgrade import PendingUpgrade, UpgradeResponse
from service.web.ws.upgrade_queue import (
    MAX_FRAME_HEAD_BYTES,
    MAX_UPGRADE_HEAD_BYTES,
    MAX_UPGRADES_PER_ITERATION,
    FirstRequestProtocol,
    UpgradeQueue,
)
from tests.support.authenticator import PausedAuthenticator
from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE, Running, eventually, passes, serving, token
from tests.support.raw import CLOSE, HANDSHAKE, PONG, TEXT, Answer, Raw, connected, frame, text

WAYS = ("queue", "route")


@asynccontextmanager
async def connected_via(server: Running, way: str) -> AsyncIterator[Raw]:
    """A connection whose next request is read by UpgradeQueue, or by aiohttp because it is not the first."""
    async with connected(server) as raw:
        if way == "route":
            assert (await raw.request("/ws")).status == 426
        yield raw


def request(
    line: str = "GET /ws HTTP/1.1", *more: str, without: str = "", host: str = "service.example", end: str = "\r\n"
) -> bytes:
    """A valid upgrade with ann's token, this request line and further headers; without one header."""
    fields = {"Host": host, **HANDSHAKE, "Authorization": f"Bearer {token()}"}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if name not in without.split()), *more]
    return (end.join(lines) + end * 2).encode("latin-1")


PING = text(type="ping", id="behind")


async def message_kinds(raw: Raw, count: int) -> list[str]:
    """The kinds of the next messages and control frames, in order, with batches split."""
    found: list[str] = []
    while len(found) < count:
        opcode, payload = await raw.receive()
        if opcode != TEXT:
            found.append({PONG: "(pong)", CLOSE: "(close)"}[opcode])
            continue
        content = json.loads(payload)
        found += [message["type"] for message in (content if isinstance(content, list) else [content])]
    return found


async def assert_served(raw: Raw) -> None:
    """Reads the 101 and `welcome`, and checks that the connection is served."""
    assert (await raw.answer()).status == 101
    raw.write(PING)
    assert await message_kinds(raw, 2) == ["welcome", "pong"]


@pytest.mark.parametrize("way", WAYS)
class TestBothWays:
    async def test_upgrade_is_served_and_leaves_nothing(self, server: Running, way: str) -> None:
        async with connected_via(server, way) as raw:
            raw.write(request())
            await assert_served(raw)
            assert await server.metric("connections") == 1
            raw.write(text(type="subscribe", id="s", channel="room:1") + text(type="ready"))
            assert (await raw.message())["type"] == "subscribed"
            raw.write(frame(CLOSE, (1000).to_bytes(2, "big")))
            assert await raw.close_code() == 1000
            await raw.gone()
        await server.at_rest()
        assert await server.metric("closes_total", code="1000") == 1
        await assert_none_waiting(server)

    async def test_client_that_vanishes_leaves_nothing(self, server: Running, way: str) -> None:
        async with connected_via(server, way) as raw:
            raw.write(request())
            await assert_served(raw)
            await raw.reset()
        await server.at_rest()
        await assert_none_waiting(server)

    @pytest.mark.parametrize("cut", [1, 4, 7, 8, 60, -4, -1])
    async def test_upgrade_in_two_segments_is_served(self, server: Running, way: str, cut: int) -> None:
        async with connected_via(server, way) as raw:
            head = request()
            raw.write(head[:cut])
            await raw.writer.drain()
            # A request on another connection, sent later, is answered: so the earlier bytes have been read.
            async with connected(server) as other:
                await other.request("/ws")
            raw.write(head[cut:])
            await assert_served(raw)
        await server.at_rest()

    async def test_frames_sent_with_the_upgrade_are_served_after_welcome(self, server: Running, way: str) -> None:
        """RFC 6455 §4.1 has clients wait, but early frames are not lost."""
        async with connected_via(server, way) as raw:
            raw.write(request() + PING + PING)
            assert (await raw.answer()).status == 101
            assert await message_kinds(raw, 3) == ["welcome", "pong", "pong"]
        async with connected_via(server, way) as raw:
            raw.write(request() + PING[:5])
            assert (await raw.answer()).status == 101
            raw.write(PING[5:])
            assert await message_kinds(raw, 2) == ["welcome", "pong"]
        await server.at_rest()

    async def test_frames_sent_with_a_refused_upgrade_are_no_request(self, server: Running, way: str) -> None:
        async with connected_via(server, way) as raw:
            raw.write(request(without="Authorization Sec-WebSocket-Key") + b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.answer()).code == "invalid_request"
        await server.at_rest()


async def assert_none_waiting(server: Running) -> None:
    """Checks that no first request is waiting."""
    upgrade_queue = server.service.upgrade_queue
    assert isinstance(upgrade_queue, UpgradeQueue)
    await eventually(lambda: not upgrade_queue.waiting, lambda: upgrade_queue.waiting)


# --- the same responses -----------------------------------------------------------------------------------------------

BODY = "Content-Length: 5"
CHUNKED = "Transfer-Encoding: chunked"
REQUESTS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "a good one": (101, request),
    "with a query": (101, lambda: request("GET /ws?channels=room:1 HTTP/1.1")),
    "with a channel that is not allowed": (403, lambda: request("GET /ws?channels=inbox:ben HTTP/1.1")),
    "with an empty query": (101, lambda: request("GET /ws? HTTP/1.1")),
    "with a fragment": (101, lambda: request("GET /ws#x HTTP/1.1")),
    "with a space in the query": (400, lambda: request("GET /ws?a b HTTP/1.1")),
    "of /wsx": (404, lambda: request("GET /wsx HTTP/1.1")),
    "of /ws/": (404, lambda: request("GET /ws/ HTTP/1.1")),
    "of /ws;x": (404, lambda: request("GET /ws;x HTTP/1.1")),
    "of //ws": (404, lambda: request("GET //ws HTTP/1.1")),
    "of /%77s": (101, lambda: request("GET /%77s HTTP/1.1")),
    "of /WS": (404, lambda: request("GET /WS HTTP/1.1")),
    "in absolute form": (101, lambda: request("GET http://service.example/ws HTTP/1.1")),
    "in absolute form, of another host": (101, lambda: request("GET http://other.example/ws?channels=room:1 HTTP/1.1")),
    "by POST": (405, lambda: request("POST /ws HTTP/1.1")),
    "by PUT": (405, lambda: request("PUT /ws HTTP/1.1")),
    "by OPTIONS": (204, lambda: request("OPTIONS /ws HTTP/1.1")),
    "by get": (400, lambda: request("get /ws HTTP/1.1")),
    "by Get": (400, lambda: request("Get /ws HTTP/1.1")),
    "with HTTP/1.0": (400, lambda: request("GET /ws HTTP/1.0")),
    "with HTTP/2.0": (400, lambda: request("GET /ws HTTP/2.0")),
    "with HTTP/1.2": (400, lambda: request("GET /ws HTTP/1.2")),
    "without a version": (400, lambda: request("GET /ws")),
    "with two spaces": (101, lambda: request("GET  /ws HTTP/1.1")),
    "with a tab": (400, lambda: request("GET /ws\tHTTP/1.1")),
    "with a space behind": (400, lambda: request("GET /ws HTTP/1.1 ")),
    "behind an empty line": (101, lambda: b"\r\n" + request()),
    "with bare line feeds": (400, lambda: request(end="\n")),
    "with two hosts": (400, lambda: request("GET /ws HTTP/1.1", "Host: other.example")),
    "without a host": (400, lambda: request(without="Host")),
    "with a folded header": (400, lambda: request("GET /ws HTTP/1.1", "X-Folded: a", " b")),
    "with a space before a colon": (400, lambda: request("GET /ws HTTP/1.1", "X-Y : z")),
    "with a header without a name": (400, lambda: request("GET /ws HTTP/1.1", ": z")),
    "with a NUL in a header": (400, lambda: request("GET /ws HTTP/1.1", "X-Y: a\0b")),
    "with a header of 6 KB": (101, lambda: request("GET /ws HTTP/1.1", f"X-Long: {'x' * 6000}")),
    "with a header of 20 KB": (431, lambda: request("GET /ws HTTP/1.1", f"X-Long: {'x' * 20_000}")),
    "with headers of 20 KB": (101, lambda: request("GET /ws HTTP/1.1", *(f"X-{n}: {'x' * 1000}" for n in range(20)))),
    "with headers of just below a protocol's bound": (
        101,
        lambda: request("GET /ws HTTP/1.1", *(f"X-{n}: {'x' * 1000}" for n in range(15))),
    ),
    "with 200 headers": (431, lambda: request("GET /ws HTTP/1.1", *(f"X-{n}: y" for n in range(200)))),
    "with a target of 20 KB": (414, lambda: request(f"GET /ws?x={'y' * 20_000} HTTP/1.1")),
    "with a body": (101, lambda: request("GET /ws HTTP/1.1", BODY) + b"hello"),
    "with an empty body": (101, lambda: request("GET /ws HTTP/1.1", "Content-Length: 0")),
    "with a body in chunks": (101, lambda: request("GET /ws HTTP/1.1", CHUNKED) + b"5\r\nhello\r\n0\r\n\r\n"),
    "with two lengths": (400, lambda: request("GET /ws HTTP/1.1", BODY, "Content-Length: 6") + b"hello"),
    "with a length and chunks": (400, lambda: request("GET /ws HTTP/1.1", BODY, CHUNKED) + b"0\r\n\r\n"),
    "that expects 100-continue": (101, lambda: request("GET /ws HTTP/1.1", "Expect: 100-continue")),
    "to WebSocket": (101, lambda: request("GET /ws HTTP/1.1", "Upgrade: WebSocket", without="Upgrade")),
    "to h2c": (426, lambda: request("GET /ws HTTP/1.1", "Upgrade: h2c", without="Upgrade")),
    "to h2c or websocket": (101, lambda: request("GET /ws HTTP/1.1", "Upgrade: h2c, websocket", without="Upgrade")),
    "to websocket or h2c": (101, lambda: request("GET /ws HTTP/1.1", "Upgrade: websocket, h2c", without="Upgrade")),
    "to HTTP/2.0 or WebSocket": (
        101,
        lambda: request("GET /ws HTTP/1.1", "Upgrade: HTTP/2.0 , WebSocket", without="Upgrade"),
    ),
    "to h2c in a line before websocket": (
        101,
        lambda: request("GET /ws HTTP/1.1", "Upgrade: h2c", "Upgrade: websocket", without="Upgrade"),
    ),
    "to a websocket of another version": (
        426,
        lambda: request("GET /ws HTTP/1.1", "Upgrade: websocket/2", without="Upgrade"),
    ),
    "with our subprotocol in a second line": (
        101,
        lambda: request(
            "GET /ws HTTP/1.1",
            "Sec-WebSocket-Protocol: chat",
            "Sec-WebSocket-Protocol: ,x , tidewire.v1",
            without="Sec-WebSocket-Protocol",
        ),
    ),
    "with Connection: Upgrade in a second line": (
        101,
        lambda: request("GET /ws HTTP/1.1", "Connection: keep-alive", "Connection: , upgrade", without="Connection"),
    ),
    "with two bearers": (401, lambda: request("GET /ws HTTP/1.1", "Authorization: Bearer x.y.z")),
    "with two origins": (
        403,
        lambda: request("GET /ws HTTP/1.1", "Origin: http://service.example", "Origin: http://evil.example"),
    ),
    "with a Host that is none": (400, lambda: request(host="a b")),
    "with an unknown transfer coding": (
        501,
        lambda: request("GET /ws HTTP/1.1", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    ),
    "to h2c, and to websocket": (101, lambda: request("GET /ws HTTP/1.1", "Upgrade: h2c")),
    "to nothing": (426, lambda: request(without="Upgrade")),
    "that is to be kept alive, too": (
        101,
        lambda: request("GET /ws HTTP/1.1", "Connection: keep-alive, Upgrade", without="Connection"),
    ),
    "that is to be closed, too": (101, lambda: request("GET /ws HTTP/1.1", "Connection: close")),
    "that does not say Connection: Upgrade": (400, lambda: request(without="Connection")),
    "without a key": (400, lambda: request(without="Sec-WebSocket-Key")),
    "with two keys": (400, lambda: request("GET /ws HTTP/1.1", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")),
    "without a subprotocol": (400, lambda: request(without="Sec-WebSocket-Protocol")),
    "with a bad token": (
        401,
        lambda: request("GET /ws HTTP/1.1", "Authorization: Bearer x.y.z", without="Authorization"),
    ),
    "from a strange origin": (403, lambda: request("GET /ws HTTP/1.1", "Origin: https://evil.example")),
    "from an origin that no page has": (403, lambda: request("GET /ws HTTP/1.1", "Origin: http://\xff\xfe")),
    "with a ticket that does not exist": (401, lambda: request("GET /ws?ticket=x HTTP/1.1", without="Authorization")),
}
"""Requests with the status of their response. aiohttp decides about faults of HTTP itself."""
OWN = {"connection", "date", "server"}
"""Headers that UpgradeQueue leaves out, because it closes the connection."""


def summarize(answer: Answer) -> tuple[int, str, dict[str, str]]:
    """Status, code (or text, where the response is no problem of ours), and headers."""
    kind = answer.headers.get("content-type", "")
    said = answer.code if answer.status == 101 or kind.startswith("application/problem+json") else answer.body.decode()
    headers = {name: value for name, value in answer.headers.items() if name not in {*OWN, "content-length"}}
    return answer.status, said, headers


async def response_to(server: Running, way: str, data: bytes) -> tuple[int, str, dict[str, str]]:
    """The gist of the response; checks also that an accepted upgrade is served."""
    async with connected_via(server, way) as raw:
        raw.write(data)
        answer = await raw.answer()
        if answer.status == 100:  # aiohttp sends it although no body follows, which it need not (RFC 9110 §10.1.1)
            answer = await raw.answer()
        if answer.status == 101:
            raw.write(PING)
            assert await message_kinds(raw, 2) == ["welcome", "pong"]
        return summarize(answer)


@pytest.mark.parametrize("name", REQUESTS)
async def test_upgrade_gets_the_same_response_either_way(server: Running, name: str) -> None:
    status, made = REQUESTS[name]
    data = made()
    by_queue = await response_to(server, "queue", data)
    by_route = await response_to(server, "route", data)
    assert by_queue == by_route
    assert by_queue[0] == status
    await server.at_rest()
    await assert_none_waiting(server)


@pytest.mark.parametrize("crowd", [1, 5])
async def test_upgrade_whose_response_fails_is_cut(
    server: Running, crowd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours, after which no deadline would end the connection. Other connections in the queue are not
    affected."""

    def fails(protocol: FirstRequestProtocol, response: web.Response) -> None:
        raise RuntimeError("a fault, for this test")

    monkeypatch.setattr(FirstRequestProtocol, "respond", fails)
    # A small batch, because each fault logs a long traceback.
    monkeypatch.setattr("service.web.ws.upgrade_queue.MAX_UPGRADES_PER_ITERATION", 2)
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(connected(server)) for _ in range(crowd)]
        upgrade_queue = server.service.upgrade_queue
        assert isinstance(upgrade_queue, UpgradeQueue)
        await eventually(lambda: len(upgrade_queue.waiting) == crowd, lambda: upgrade_queue.waiting)
        for protocol in list(upgrade_queue.waiting):  # as if the kernel had reported them all at once
            protocol.data_received(request(without="Sec-WebSocket-Key"))
        for raw in raws:
            await raw.gone()
    await server.at_rest()


# --- while the upgrade is checked -------------------------------------------------------------------------------------


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("way", WAYS)
class TestDuringChecks:
    @pytest.mark.parametrize("noticed", [True, False], ids=["and that is noticed", "and nobody has noticed"])
    @pytest.mark.parametrize("how", ["reset", "hang up"])
    async def test_client_that_vanishes_during_the_checks_leaves_nothing(
        self, way: str, how: str, noticed: bool
    ) -> None:
        gate = PausedAuthenticator()
        async with serving(authenticator=gate) as server:
            async with connected_via(server, way) as raw:
                raw.write(request())
                await asyncio.wait_for(gate.asked.wait(), DEADLINE)
                assert await server.metric("pending_connections") == 1
                fds = open_fds() - 2
                await (raw.reset() if how == "reset" else raw.close())
                if noticed and how == "reset":
                    await eventually(lambda: open_fds() <= fds, open_fds)
                elif noticed:  # the service keeps its end open for the response
                    async with connected(server) as other:  # once that is answered, the end of the first has been read
                        await other.request("/wsx")
                gate.opens.set()
            await server.at_rest()
            await assert_none_waiting(server)
            await eventually(lambda: not unfinished_upgrades(server), lambda: unfinished_upgrades(server))
            await eventually(
                lambda: open_fds() <= fds, open_fds, within=3.0
            )  # before aiohttp's client closes idle connections

    async def test_frames_sent_during_the_checks_are_served_after_welcome(self, way: str) -> None:
        gate = PausedAuthenticator()
        async with serving(authenticator=gate) as server, connected_via(server, way) as raw:
            raw.write(request() + PING[:3])
            await asyncio.wait_for(gate.asked.wait(), DEADLINE)
            raw.write(PING[3:] + PING)
            async with connected(server) as other:  # once that is answered, the earlier bytes have been read
                await other.request("/wsx")
            gate.opens.set()
            assert (await raw.answer()).status == 101
            assert await message_kinds(raw, 3) == ["welcome", "pong", "pong"]


async def test_client_that_sends_too_much_during_the_checks_is_cut() -> None:
    gate = PausedAuthenticator()
    async with serving(authenticator=gate) as server:
        async with connected_via(server, "queue") as raw:
            raw.write(request())
            await asyncio.wait_for(gate.asked.wait(), DEADLINE)
            raw.write(bytes(65_536 + MAX_FRAME_HEAD_BYTES + 1))
            await raw.gone()
            gate.opens.set()
        await server.at_rest()
        await eventually(lambda: not unfinished_upgrades(server), lambda: unfinished_upgrades(server))


def unfinished_upgrades(server: Running) -> list[str]:
    """Upgrades whose checks have not finished."""
    names = [task.get_name() for task in server.service.node.runtime.tasks.running]
    return [name for name in names if name == "upgrade"]


# --- connections that send no request ---------------------------------------------------------------------------------


def waiting(server: Running) -> int:
    """TCP connections that are not WebSockets."""
    return len(server.service.http_connections)


async def test_connection_without_a_request_is_cut_at_the_deadline() -> None:
    deadline, clock = 3.0, FakeClock(time.time())
    parts = [b"", b"G", b"GET /ws", b"GET /ws HTTP/1.1\r\nHost: x\r\n", b"GET /other HTTP/1.1\r\n", b"\r\n"]
    async with serving(clock=clock, deadlines={"header": deadline}) as server, AsyncExitStack() as stack:
        bystander = await stack.enter_async_context(connected(server))
        bystander.write(request())
        await assert_served(bystander)
        crowd = [await stack.enter_async_context(connected(server)) for _ in parts]
        for raw, part in zip(crowd, parts, strict=True):
            raw.write(part)
        await eventually(lambda: waiting(server) == len(parts), lambda: waiting(server))
        await passes(clock, deadline - 0.5)
        assert waiting(server) == len(parts), "they could still have asked"
        await passes(clock, 0.5 + 2 * CHECK_INTERVAL)
        await asyncio.gather(*(raw.gone() for raw in crowd))
        assert await server.metric("limit_hits_total", limit="header_deadline") == len(parts)
        await assert_none_waiting(server)
        bystander.write(PING)
        assert await message_kinds(bystander, 1) == ["pong"]


async def test_connection_closed_without_a_request_leaves_nothing(server: Running) -> None:
    upgrade_queue = server.service.upgrade_queue
    assert isinstance(upgrade_queue, UpgradeQueue)
    async with connected(server):
        await eventually(lambda: len(upgrade_queue.waiting) == 1, lambda: upgrade_queue.waiting)
    await assert_none_waiting(server)
    await server.at_rest()


async def test_client_that_resets_after_its_request_is_not_logged(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal is written to a connection that has been reset."""
    asks = b"GET /ws HTTP/1.1\r\nHost: service.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    refused = server.service.metrics.clients.upgrade_refusals.labels(
        cause="client", door="upgrade", reason="unsupported_version"
    )

    async def vanish(looked_at: int) -> None:
        for _ in range(MAX_UPGRADES_PER_ITERATION):  # more would wait in the queue, and be gone before they start
            with socket.create_connection(address) as end:
                end.sendall(asks)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: refused.value == looked_at)

    for times in range(1, 6):
        await vanish(times * MAX_UPGRADES_PER_ITERATION)
    await eventually(lambda: waiting(server) == 0)
    gc.collect()  # asyncio reports lost exceptions when a task is freed
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_head_above_the_limit_is_refused_by_aiohttp(server: Running) -> None:
    async with connected(server) as raw:
        raw.write(b"GET /ws HTTP/1.1\r\nX-Long: " + b"x" * MAX_UPGRADE_HEAD_BYTES)
        assert (await raw.answer()).code == "header_too_large"
    await assert_none_waiting(server)


# --- many upgrades at once --------------------------------------------------------------------------------------------


def serving_many() -> AbstractAsyncContextManager[Running]:
    return serving(limits={"connections_per_user": 1_000})


async def test_upgrades_of_a_crowd_start_a_few_per_iteration() -> None:
    async with serving_many() as server, AsyncExitStack() as stack:
        upgrade_queue = server.service.upgrade_queue
        assert isinstance(upgrade_queue, UpgradeQueue)
        check, started, iterations, now = upgrade_queue.context.upgrade_handler.check, list[int](), list[int](), 0

        def counted_check(request: web.BaseRequest, pending: PendingUpgrade) -> UpgradeResponse | None:
            started.append(now)
            return check(request, pending)

        def next_iteration() -> None:
            nonlocal now
            now += 1
            iterations.append(len(started))
            if len(started) < count - 1:
                loop.call_soon(next_iteration)

        loop = asyncio.get_running_loop()
        count = 3 * MAX_UPGRADES_PER_ITERATION + 5
        crowd = [await stack.enter_async_context(connected(server)) for _ in range(count)]
        await eventually(lambda: len(upgrade_queue.waiting) == count, lambda: upgrade_queue.waiting)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upgrade_queue.context.upgrade_handler, "check", counted_check)
            loop.call_soon(next_iteration)
            protocols = upgrade_queue.waiting
            for protocol in protocols:  # as if the kernel had reported them all at once
                protocol.data_received(request())
            assert not started, "no upgrade keeps others from being read"
            lost = protocols[-1]
            lost.abort()
            await eventually(lambda: len(started) == count - 1 and lost.transport is None, lambda: started)
            await asyncio.sleep(0)  # the last iteration has to be counted
        assert max(Counter(started).values()) <= MAX_UPGRADES_PER_ITERATION
        assert len(iterations) >= count // MAX_UPGRADES_PER_ITERATION
        await crowd.pop().gone()
        for raw in crowd:
            await assert_served(raw)
        await assert_none_waiting(server)


async def test_queued_upgrades_are_cut_when_the_queue_closes() -> None:
    async with serving_many() as server, AsyncExitStack() as stack:
        upgrade_queue = server.service.upgrade_queue
        assert isinstance(upgrade_queue, UpgradeQueue)
        crowd = [await stack.enter_async_context(connected(server)) for _ in range(MAX_UPGRADES_PER_ITERATION + 3)]
        await eventually(lambda: len(upgrade_queue.waiting) == len(crowd), lambda: upgrade_queue.waiting)
        protocols = upgrade_queue.waiting
        for protocol in protocols:
            protocol.data_received(request())
        upgrade_queue.start_next()  # as at the end of the loop iteration
        queued = protocols[MAX_UPGRADES_PER_ITERATION:]
        assert len(queued) == 3
        upgrade_queue.close()
        await eventually(lambda: all(protocol.transport is None for protocol in queued))
        assert await server.metric("connections") == MAX_UPGRADES_PER_ITERATION
