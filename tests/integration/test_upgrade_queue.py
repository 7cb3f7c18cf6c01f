"""The two ways to a WebSocket, the front's and that of aiohttp's route: the same answers, and nothing left behind."""

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

from service.core.identity import Identity
from service.web.http.http_connections import SWEEP_INTERVAL
from service.web.ws.upgrade import Fresh
from service.web.ws.upgrade_queue import FRAME_HEAD, MAX_HEAD, MAX_IN_TURN, FirstRequestProtocol, UpgradeQueue
from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE, Running, eventually, passes, serving, token
from tests.support.raw import CLOSE, HANDSHAKE, PONG, TEXT, Answer, Raw, connected, frame, text

WAYS = ("front", "route")


@asynccontextmanager
async def reached(server: Running, way: str) -> AsyncIterator[Raw]:
    """A connection whose next request is taken by the front, or, as it is not the first, by aiohttp."""
    async with connected(server) as raw:
        if way == "route":
            assert (await raw.request("/ws")).status == 426
        yield raw


def request(
    line: str = "GET /ws HTTP/1.1", *more: str, without: str = "", host: str = "service.example", end: str = "\r\n"
) -> bytes:
    """A good upgrade with ann's token, with this request line and further header lines; without a header."""
    fields = {"Host": host, **HANDSHAKE, "Authorization": f"Bearer {token()}"}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if name not in without.split()), *more]
    return (end.join(lines) + end * 2).encode("latin-1")


PING = text(type="ping", id="behind")


async def kinds(raw: Raw, count: int) -> list[str]:
    """So many messages and frames that are none, in order; batches are taken apart."""
    found: list[str] = []
    while len(found) < count:
        opcode, payload = await raw.receive()
        if opcode != TEXT:
            found.append({PONG: "(pong)", CLOSE: "(close)"}[opcode])
            continue
        content = json.loads(payload)
        found += [message["type"] for message in (content if isinstance(content, list) else [content])]
    return found


async def welcomed(raw: Raw) -> None:
    """Reads the upgrade's answer and `welcome`, and proves that the connection is served."""
    assert (await raw.answer()).status == 101
    raw.write(PING)
    assert await kinds(raw, 2) == ["welcome", "pong"]


@pytest.mark.parametrize("way", WAYS)
class TestEitherWay:
    async def test_an_upgrade_is_served_and_leaves_nothing(self, server: Running, way: str) -> None:
        async with reached(server, way) as raw:
            raw.write(request())
            await welcomed(raw)
            assert await server.metric("connections") == 1
            raw.write(text(type="subscribe", id="s", channel="room:1") + text(type="ready"))
            assert (await raw.message())["type"] == "subscribed"
            raw.write(frame(CLOSE, (1000).to_bytes(2, "big")))
            assert await raw.close_code() == 1000
            await raw.gone()
        await server.at_rest()
        assert await server.metric("closes_total", code="1000") == 1
        await nobody_waits(server)

    async def test_a_client_that_vanishes_leaves_nothing(self, server: Running, way: str) -> None:
        async with reached(server, way) as raw:
            raw.write(request())
            await welcomed(raw)
            await raw.reset()
        await server.at_rest()
        await nobody_waits(server)

    @pytest.mark.parametrize("cut", [1, 4, 7, 8, 60, -4, -1])
    async def test_an_upgrade_may_come_in_two_segments(self, server: Running, way: str, cut: int) -> None:
        async with reached(server, way) as raw:
            head = request()
            raw.write(head[:cut])
            await raw.writer.drain()
            # What was sent has been read once a request on another connection, sent after it, has been answered.
            async with connected(server) as other:
                await other.request("/ws")
            raw.write(head[cut:])
            await welcomed(raw)
        await server.at_rest()

    async def test_what_comes_behind_the_upgrade_is_served_after_welcome(self, server: Running, way: str) -> None:
        """RFC 6455 §4.1 has clients wait. What one sends all the same is not thrown away."""
        async with reached(server, way) as raw:
            raw.write(request() + PING + PING)
            assert (await raw.answer()).status == 101
            assert await kinds(raw, 3) == ["welcome", "pong", "pong"]
        async with reached(server, way) as raw:
            raw.write(request() + PING[:5])
            assert (await raw.answer()).status == 101
            raw.write(PING[5:])
            assert await kinds(raw, 2) == ["welcome", "pong"]
        await server.at_rest()

    async def test_what_comes_behind_a_refused_upgrade_is_not_taken_for_a_request(
        self, server: Running, way: str
    ) -> None:
        async with reached(server, way) as raw:
            raw.write(request(without="Authorization Sec-WebSocket-Key") + b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.answer()).code == "invalid_request"
        await server.at_rest()


async def nobody_waits(server: Running) -> None:
    """Nothing of the front is left."""
    door = server.service.door
    assert isinstance(door, UpgradeQueue)
    await eventually(lambda: not door.waiting, lambda: door.waiting)


# --- the same answers -------------------------------------------------------------------------------------------------------

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
    "with headers of just below a front's bound": (
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
"""What is sent, and the status of its answer. What HTTP itself has to say is aiohttp's to judge."""
OWN = {"connection", "date", "server"}
"""Headers that the front has no need of, as it ends the connection."""


def gist(answer: Answer) -> tuple[int, str, dict[str, str]]:
    """Status, code (or text, where the answer is no problem of ours), and headers."""
    kind = answer.headers.get("content-type", "")
    said = answer.code if answer.status == 101 or kind.startswith("application/problem+json") else answer.body.decode()
    headers = {name: value for name, value in answer.headers.items() if name not in {*OWN, "content-length"}}
    return answer.status, said, headers


async def answer_to(server: Running, way: str, data: bytes) -> tuple[int, str, dict[str, str]]:
    """The gist of the answer; an upgrade that succeeds is seen to be served, too."""
    async with reached(server, way) as raw:
        raw.write(data)
        answer = await raw.answer()
        if answer.status == 100:  # aiohttp says so, though there is no body to come; it need not (RFC 9110 §10.1.1)
            answer = await raw.answer()
        if answer.status == 101:
            raw.write(PING)
            assert await kinds(raw, 2) == ["welcome", "pong"]
        return gist(answer)


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_upgrade_is_answered_the_same_either_way(server: Running, name: str) -> None:
    status, made = REQUESTS[name]
    data = made()
    by_front = await answer_to(server, "front", data)
    by_route = await answer_to(server, "route", data)
    assert by_front == by_route
    assert by_front[0] == status
    await server.at_rest()
    await nobody_waits(server)


@pytest.mark.parametrize("crowd", [1, MAX_IN_TURN + 3])
async def test_who_cannot_be_answered_is_cut(server: Running, crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours, and no deadline is left that would end the connection; the others of a queue do not notice."""

    def fails(front: FirstRequestProtocol, response: web.Response) -> None:
        raise RuntimeError("a fault, for this test")

    monkeypatch.setattr(FirstRequestProtocol, "answer", fails)
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(connected(server)) for _ in range(crowd)]
        door = server.service.door
        assert isinstance(door, UpgradeQueue)
        await eventually(lambda: len(door.waiting) == crowd, lambda: door.waiting)
        for front in list(door.waiting):  # as if the kernel had told of all of them at once
            front.data_received(request(without="Sec-WebSocket-Key"))
        for raw in raws:
            await raw.gone()
    await server.at_rest()


# --- while it is being checked ----------------------------------------------------------------------------------------------


class Gate:
    """An authenticator that takes its time."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.opens = asyncio.Event()

    async def authenticate(self, token: str) -> Identity:
        self.asked.set()
        await self.opens.wait()
        return Identity("default", "ann")


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("way", WAYS)
class TestWhileItIsChecked:
    @pytest.mark.parametrize("noticed", [True, False], ids=["and that is noticed", "and nobody has noticed"])
    @pytest.mark.parametrize("how", ["reset", "hang up"])
    async def test_a_client_that_vanishes_leaves_nothing(self, way: str, how: str, noticed: bool) -> None:
        gate = Gate()
        async with serving(authenticator=gate) as server:
            async with reached(server, way) as raw:
                raw.write(request())
                await asyncio.wait_for(gate.asked.wait(), DEADLINE)
                assert await server.metric("pending_connections") == 1
                fds = open_fds() - 2
                await (raw.reset() if how == "reset" else raw.close())
                if noticed:
                    await eventually(lambda: open_fds() <= fds, open_fds)
                gate.opens.set()
            await server.at_rest()
            await nobody_waits(server)
            await eventually(lambda: not arrivals(server), lambda: arrivals(server))
            assert open_fds() <= fds

    async def test_what_it_sends_meanwhile_is_served_after_welcome(self, way: str) -> None:
        gate = Gate()
        async with serving(authenticator=gate) as server, reached(server, way) as raw:
            raw.write(request() + PING[:3])
            await asyncio.wait_for(gate.asked.wait(), DEADLINE)
            raw.write(PING[3:] + PING)
            async with connected(server) as other:  # when that is answered, what came before it has been read
                await other.request("/wsx")
            gate.opens.set()
            assert (await raw.answer()).status == 101
            assert await kinds(raw, 3) == ["welcome", "pong", "pong"]


async def test_who_sends_much_while_it_is_checked_is_cut() -> None:
    gate = Gate()
    async with serving(authenticator=gate) as server:
        async with reached(server, "front") as raw:
            raw.write(request())
            await asyncio.wait_for(gate.asked.wait(), DEADLINE)
            raw.write(bytes(65_536 + FRAME_HEAD + 1))
            await raw.gone()
            gate.opens.set()
        await server.at_rest()
        await eventually(lambda: not arrivals(server), lambda: arrivals(server))


def arrivals(server: Running) -> list[str]:
    """Upgrades that are being checked."""
    names = [task.get_name() for task in server.service.node.runtime.tasks._tasks]
    return [name for name in names if name == "arrival"]


# --- those that ask for nothing ---------------------------------------------------------------------------------------------


def waiting(server: Running) -> int:
    """TCP connections that are no WebSockets."""
    return len(server.service.http_connections)


async def test_whoever_does_not_ask_in_time_is_cut() -> None:
    deadline, clock = 3.0, FakeClock(time.time())
    parts = [b"", b"G", b"GET /ws", b"GET /ws HTTP/1.1\r\nHost: x\r\n", b"GET /other HTTP/1.1\r\n", b"\r\n"]
    async with serving(clock=clock, deadlines={"header": deadline}) as server, AsyncExitStack() as stack:
        bystander = await stack.enter_async_context(connected(server))
        bystander.write(request())
        await welcomed(bystander)
        crowd = [await stack.enter_async_context(connected(server)) for _ in parts]
        for raw, part in zip(crowd, parts, strict=True):
            raw.write(part)
        await eventually(lambda: waiting(server) == len(parts), lambda: waiting(server))
        await passes(clock, deadline - 0.5)
        assert waiting(server) == len(parts), "they could still have asked"
        await passes(clock, 0.5 + 2 * SWEEP_INTERVAL)
        await asyncio.gather(*(raw.gone() for raw in crowd))
        assert await server.metric("limit_hits_total", limit="header_deadline") == len(parts)
        await nobody_waits(server)
        bystander.write(PING)
        assert await kinds(bystander, 1) == ["pong"]


async def test_who_hangs_up_without_a_word_leaves_nothing(server: Running) -> None:
    door = server.service.door
    assert isinstance(door, UpgradeQueue)
    async with connected(server):
        await eventually(lambda: len(door.waiting) == 1, lambda: door.waiting)
    await nobody_waits(server)
    await server.at_rest()


async def test_who_asks_and_vanishes_writes_nothing_into_the_log(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal finds a connection that has been reset, which shows when it is written."""
    asks = b"GET /ws HTTP/1.1\r\nHost: service.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    refused = server.service.metrics.clients.upgrade_refusals.labels(
        cause="client", door="upgrade", reason="unsupported_version"
    )

    async def vanish(looked_at: int) -> None:
        for _ in range(MAX_IN_TURN):  # whoever had to wait for another turn would be gone by then, and not looked at
            with socket.create_connection(address) as end:
                end.sendall(asks)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: refused.value == looked_at)

    for times in range(1, 6):
        await vanish(times * MAX_IN_TURN)
    await eventually(lambda: waiting(server) == 0)
    gc.collect()  # what is told of tasks is told at their end
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_head_that_does_not_end_is_aiohttp_s_to_refuse(server: Running) -> None:
    async with connected(server) as raw:
        raw.write(b"GET /ws HTTP/1.1\r\nX-Long: " + b"x" * MAX_HEAD)
        assert (await raw.answer()).code == "header_too_large"
    await nobody_waits(server)


# --- when many come -----------------------------------------------------------------------------------------------------------


def crowded() -> AbstractAsyncContextManager[Running]:
    return serving(limits={"connections_per_user": 1_000})


async def test_a_crowd_is_let_in_a_few_a_turn_and_others_get_theirs_between() -> None:
    async with crowded() as server, AsyncExitStack() as stack:
        door = server.service.door
        assert isinstance(door, UpgradeQueue)
        begin, come, turns, now = door.upgrades.accept, list[int](), list[int](), 0

        def noted(request: web.BaseRequest, fresh: Fresh) -> None:
            come.append(now)
            begin(request, fresh)

        def next_turn() -> None:
            nonlocal now
            now += 1
            turns.append(len(come))
            if len(come) < count - 1:
                loop.call_soon(next_turn)

        loop = asyncio.get_running_loop()
        count = 3 * MAX_IN_TURN + 5
        crowd = [await stack.enter_async_context(connected(server)) for _ in range(count)]
        await eventually(lambda: len(door.waiting) == count, lambda: door.waiting)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(door.upgrades, "accept", noted)
            loop.call_soon(next_turn)
            for front in list(door.waiting):  # as if the kernel had told of all of them at once
                front.data_received(request())
            assert len(come) == MAX_IN_TURN, "the first are not kept waiting"
            gone = door._queue[-1]
            gone.abort()
            await eventually(lambda: len(come) == count - 1 and gone.transport is None, lambda: come)
            await asyncio.sleep(0)  # the last turn has still to be counted
        assert max(Counter(come).values()) <= MAX_IN_TURN
        assert len(turns) >= count // MAX_IN_TURN
        await crowd.pop().gone()
        for raw in crowd:
            await welcomed(raw)
        await nobody_waits(server)


async def test_those_in_the_queue_are_cut_with_the_door() -> None:
    async with crowded() as server, AsyncExitStack() as stack:
        door = server.service.door
        assert isinstance(door, UpgradeQueue)
        crowd = [await stack.enter_async_context(connected(server)) for _ in range(MAX_IN_TURN + 3)]
        await eventually(lambda: len(door.waiting) == len(crowd), lambda: door.waiting)
        for front in list(door.waiting):
            front.data_received(request())
        queued = list(door._queue)
        assert len(queued) == 3
        door.close()
        await eventually(lambda: all(front.transport is None for front in queued))
        assert await server.metric("connections") == MAX_IN_TURN
