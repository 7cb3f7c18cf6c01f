"""Conformance to HTTP/1.1: half-closed connections, transfer codings, refusals by the parser, and listening addresses."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import uvloop
from aiohttp.base_protocol import BaseProtocol

from service.cli import workers
from service.web.http.http_protocol import RequestParser
from service.web.http.socket_options import bind_sockets
from tests.support.authenticator import PausedAuthenticator
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, DEADLINE, Running, eventually, serving, token
from tests.support.raw import HANDSHAKE, TEXT, Answer, Raw, connected, frame, new_ticket, text, upgraded

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
EVENT = json.dumps({"type": "chat.message", "data": {"text": "x"}}).encode()


def post(*fields: str, body: bytes = EVENT, version: str = "1.1", length: bool = True) -> bytes:
    """A backend's publish."""
    lines = [
        f"POST /api/v1/channels/room:1/events HTTP/{version}",
        "Host: service.example",
        f"Authorization: Bearer {API_KEY}",
        "Content-Type: application/json",
        *([f"Content-Length: {len(body)}"] if length else []),
        *fields,
    ]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def get(target: str, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"GET {target} HTTP/{version}", "Host: service.example", *fields]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT)


async def exchange(port: int, data: bytes, *, ends: bool = True, host: str = "127.0.0.1") -> list[Answer]:
    """Sends data, half-closes, and reads every response up to the end of the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        if ends:
            writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            return list(_answers(await reader.read(-1)))
    finally:
        writer.close()


def _answers(data: bytes) -> Any:
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0)) if first[9:12] != "101" else len(data)  # the rest is not HTTP
        yield Answer(int(first.split(" ")[1]), headers, data[:size])
        data = data[size:]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def on_each_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[str], None]:
    """Runs a test on both event loops, which differ for half-closed connections."""

    @pytest.mark.parametrize("loop", LOOPS)
    def run(loop: str) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


# --- half-closed connections ------------------------------------------------------------------------------------------


@on_each_loop
async def test_half_closed_request_is_answered_then_closed() -> None:
    async with serving() as server:
        public, ops = port_of(server.url), port_of(server.ops_url)
        (answer,) = await exchange(public, post())
        assert (answer.status, json.loads(answer.body)["offset"]) == (200, 1)
        assert answer.headers["connection"] == "close"
        for path in ("/healthz", "/readyz", "/metrics"):
            for version in ("1.1", "1.0"):
                (answer,) = await exchange(ops, get(path, version=version))
                assert answer.status == 200, path
        (answer,) = await exchange(public, get("/api/v1/openapi.json", "Connection: keep-alive"))
        assert answer.status == 200
        (answer,) = await exchange(public, post("Transfer-Encoding: chunked", body=CHUNKED, length=False))
        assert json.loads(answer.body)["offset"] == 2


@on_each_loop
async def test_half_closed_pipeline_is_answered_in_order_then_closed() -> None:
    count = 40  # more than aiohttp's queue holds at once
    async with serving() as server:
        requests = b"".join(post() for _ in range(count)) + get("/nowhere") + get("/ws", *_fields(HANDSHAKE)) + post()
        answers = await exchange(port_of(server.url), requests)
        assert [json.loads(answer.body)["offset"] for answer in answers[:count]] == list(range(1, count + 1))
        assert [answer.status for answer in answers[count : count + 1]] == [404]
        # The upgrade succeeds (without hello yet), so what is behind it is not a request.
        assert [answer.status for answer in answers[count + 1 : count + 2]] == [101]


def _fields(headers: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


@on_each_loop
async def test_half_closed_upgrade_is_answered_then_closed() -> None:
    async with serving() as server:
        port = port_of(server.url)
        good = _fields(HANDSHAKE | {"Authorization": f"Bearer {token()}"})
        bad = _fields(HANDSHAKE | {"Authorization": "Bearer x.y.z"})
        for before in (b"", get("/nowhere")):  # by UpgradeQueue, and by aiohttp's route
            *_, answer = await exchange(port, before + get("/ws", *good))
            assert answer.status == 101
            *_, answer = await exchange(port, before + get("/ws", *bad))
            assert answer.code == "invalid_token"
        (refused,) = await exchange(port, get("/ws", *bad) + post())
        assert refused.status == 401
        await server.at_rest()


@on_each_loop
async def test_half_closed_upgrade_during_its_checks_is_answered() -> None:
    for origin, status in (("http://service.example", 101), ("http://evil.example", 403)):
        slow = PausedAuthenticator()
        async with serving(authenticator=slow, origins=("http://service.example",)) as server:
            asked = get("/ws", *_fields(HANDSHAKE | {"Authorization": "Bearer x.y.z", "Origin": origin}))
            exchanged = asyncio.create_task(exchange(port_of(server.url), asked))
            if status == 101:
                async with asyncio.timeout(DEADLINE):
                    await slow.asked.wait()
            slow.opens.set()
            (answer,) = await exchanged
            assert answer.status == status
            await server.at_rest()


async def message_types(raw: Raw) -> list[str]:
    """The types of all messages up to the end of the connection, with batches split."""
    types: list[str] = []
    with suppress(asyncio.IncompleteReadError):
        while True:
            _, payload = await raw.receive()
            content = json.loads(payload)
            types += [message["type"] for message in (content if isinstance(content, list) else [content])]
    return types


@on_each_loop
async def test_half_closed_websocket_with_a_command_in_progress_is_answered() -> None:
    """Without a close frame, the command is finished, and its sender gets the reply."""
    slow = PausedAuthenticator()
    slow.opens.set()
    async with serving(authenticator=slow) as server:
        hello, ping = {"type": "hello", "token": "x.y.z"}, {"type": "ping", "id": "p"}
        for more, data in (
            (False, text(**hello)),
            (True, text(**hello) + text(**ping)),
            (True, frame(TEXT, json.dumps([hello, ping]).encode())),
        ):
            async with connected(server) as raw:
                raw.write(get("/ws", *_fields(HANDSHAKE)))
                assert (await raw.answer()).status == 101
                slow.opens.clear()
                slow.asked.clear()
                raw.write(data)
                raw.writer.write_eof()
                async with asyncio.timeout(DEADLINE):
                    await slow.asked.wait()
                slow.opens.set()
                assert await message_types(raw) == ["welcome", *(["pong"] if more else [])]
        async with upgraded(server) as raw:
            slow.opens.clear()
            slow.asked.clear()
            raw.write(text(type="refresh", id="r", token="x.y.z") + text(type="ping", id="p"))
            raw.writer.write_eof()
            async with asyncio.timeout(DEADLINE):
                await slow.asked.wait()
            slow.opens.set()
            assert await message_types(raw) == ["ack", "pong"]
        async with upgraded(server) as raw:
            raw.writer.write_eof()
            await raw.gone()
        await server.at_rest()
        assert await server.metric("closes_total", code="1006") == 5


async def test_half_closed_websocket_with_a_slow_command_is_cut() -> None:
    slow = PausedAuthenticator()
    slow.opens.set()
    async with serving(authenticator=slow, outbox={"close_grace": 0.1}) as server:
        async with upgraded(server) as raw:
            slow.opens.clear()
            raw.write(text(type="refresh", id="r", token="x.y.z"))
            raw.writer.write_eof()
            await raw.gone()
            slow.opens.set()
        await server.at_rest()


@on_each_loop
async def test_half_closed_incomplete_body_is_refused_at_once() -> None:
    async with serving() as server:
        port = port_of(server.url)
        for request in (post()[:-5], post("Transfer-Encoding: chunked", body=CHUNKED[:-7], length=False)):
            (answer,) = await exchange(port, request)
            assert answer.code == "malformed"
        unread = b"POST /tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
        (answer,) = await exchange(port, unread)
        assert answer.status == 401
        assert await server.metric("api_requests_total", route="/api/v1/events", method="POST", status="200") == 0
        assert (await server.publish("room:1", json.loads(EVENT)))["offset"] == 1, "neither was published"


@on_each_loop
async def test_half_closed_idle_connection_is_closed_at_once() -> None:
    clock = FakeClock(time.time())  # which stands still, so no deadline applies
    async with serving(clock=clock) as server:
        for port in (port_of(server.url), port_of(server.ops_url)):
            for data in (b"", b"G", b"GET /ws HT", b"GET /healthz HTTP/1.1\r\nHo", b"\r\n"):
                assert await exchange(port, data) == []
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get("/nowhere"))
            async with asyncio.timeout(DEADLINE):
                assert (await reader.readline()).startswith(b"HTTP/1.1 404")
                while not (await reader.readuntil(b"}")).endswith(b"{}"):
                    pass
                writer.write_eof()
                await reader.read(-1)
            writer.close()


async def test_half_closed_request_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        for _ in range(3):
            await exchange(port_of(server.url), post())
            await exchange(port_of(server.url), post()[:-5])
        await eventually(lambda: not len(server.service.http_connections))
    # The loop's debug mode reports slow steps, which happen on any busy machine.
    told = [record for record in caplog.records if record.levelno >= logging.WARNING and record.name != "asyncio"]
    assert told == []


async def test_incomplete_body_without_half_close_goes_by_its_deadline() -> None:
    """The other case: the body never comes and the connection stays open."""
    async with serving(deadlines={"body": 0.2}) as server:
        answers = await exchange(port_of(server.url), post()[:-5], ends=False)
        assert answers[0].code == "deadline"


# --- refusals by the parser -------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[int, str, bytes]] = {
    "transfer coding gzip, chunked": (
        501,
        "not_implemented",
        post("Transfer-Encoding: gzip, chunked", body=CHUNKED, length=False),
    ),
    "transfer coding identity, chunked": (
        501,
        "not_implemented",
        post("Transfer-Encoding: identity, chunked", body=CHUNKED, length=False),
    ),
    "transfer coding chunked, gzip": (
        400,
        "invalid_request",
        post("Transfer-Encoding: chunked, gzip", body=CHUNKED, length=False),
    ),
    "transfer coding gzip": (400, "invalid_request", post("Transfer-Encoding: gzip", length=False)),
    "transfer coding chunked twice": (
        400,
        "invalid_request",
        post("Transfer-Encoding: chunked, chunked", body=CHUNKED, length=False),
    ),
    "transfer coding in two lines": (
        400,
        "invalid_request",
        post("Transfer-Encoding: gzip", "Transfer-Encoding: chunked", body=CHUNKED, length=False),
    ),
    "transfer coding with a parameter": (
        400,
        "invalid_request",
        post("Transfer-Encoding: chunked;x=y", body=CHUNKED, length=False),
    ),
    "transfer coding and length": (400, "invalid_request", post("Transfer-Encoding: chunked", body=CHUNKED)),
    "transfer coding in HTTP/1.0": (
        400,
        "invalid_request",
        post("Transfer-Encoding: chunked", body=CHUNKED, length=False, version="1.0"),
    ),
    "two lengths": (400, "invalid_request", post("Content-Length: 5")),
    "the same length twice": (400, "invalid_request", post(f"Content-Length: {len(EVENT)}")),
    "a list of lengths": (400, "invalid_request", post("Content-Length: 5, 5", length=False)),
    "a length with a sign": (400, "invalid_request", post("Content-Length: +5", length=False)),
    "a folded header": (400, "invalid_request", get("/healthz", "X: a", " b")),
    "no host": (400, "invalid_request", b"GET /healthz HTTP/1.1\r\n\r\n"),
    "two hosts": (400, "invalid_request", get("/healthz", "Host: service.example")),
    "a host that is none": (400, "invalid_request", b"GET /healthz HTTP/1.1\r\nHost: a b/@\r\n\r\n"),
    "a method that is none": (400, "invalid_request", b"get /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
    "no HTTP": (400, "invalid_request", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
    "HTTP/2": (400, "invalid_request", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/2.0": (400, "invalid_request", get("/healthz", version="2.0")),
    "HTTP/1.2": (400, "invalid_request", get("/healthz", version="1.2")),
    "a long target": (414, "uri_too_long", get(f"/{'x' * 9000}")),
    "a long header": (431, "header_too_large", get("/healthz", f"X: {'x' * 9000}")),
    "a long name of a header": (431, "header_too_large", get("/healthz", f"{'x' * 9000}: y")),
    "many headers": (431, "header_too_large", get("/healthz", *(f"X-{number}: y" for number in range(200)))),
    "an expectation": (417, "expectation_failed", get("/healthz", "Expect: x")),
    "an expectation that is no text": (417, "expectation_failed", get("/healthz", "Expect: \xff")),
    "an expectation in a second line": (
        417,
        "expectation_failed",
        get("/healthz", "Expect: 100-continue", "Expect: x"),
    ),
    "an unknown address": (404, "not_found", get("/nowhere")),
    "an address in absolute form": (404, "not_found", get("http://service.example/nowhere")),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_request_is_a_problem_on_both_listeners(server: Running, name: str) -> None:
    status, code, data = REFUSED[name]
    for url in (server.url, server.ops_url):
        (answer, *_) = await exchange(port_of(url), data)
        assert (answer.status, answer.code) == (status, code), answer
        assert answer.problem["detail"]
        assert "\n" not in answer.problem["detail"]
    if data.startswith(b"POST"):
        assert (await server.publish("room:1", json.loads(EVENT)))["offset"] == 1, "nothing was published"


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "TRACE", "DELETE"])
async def test_method_unknown_to_the_ops_listener_is_a_problem(server: Running, method: str) -> None:
    (answer,) = await exchange(port_of(server.ops_url), f"{method} /healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert set(re.split(", *", answer.headers["allow"])) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "fields",
    [["Transfer-Encoding: Chunked"], ["Transfer-Encoding: , chunked"], ["Expect: 100-Continue"]],
)
async def test_request_that_the_rfc_allows_is_accepted(server: Running, fields: list[str]) -> None:
    is_chunked = fields[0].startswith("Transfer")
    data = post(*fields, body=CHUNKED if is_chunked else EVENT, length=not is_chunked)
    answers = await exchange(port_of(server.url), data)
    assert [answer.status for answer in answers if answer.status != 100] == [200]


@pytest.mark.parametrize("ends", [True, False], ids=["half-closed", "open"])
@pytest.mark.parametrize("offer", ["h2c", "h2c, other", "websocket"])
async def test_request_behind_an_ignored_upgrade_is_answered(server: Running, offer: str, ends: bool) -> None:
    first = get("/nowhere", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAA")
    for url in (server.url, server.ops_url):
        answers = await exchange(
            port_of(url), first + get("/elsewhere") + get("/nowhere", "Connection: close"), ends=ends
        )
        assert [answer.status for answer in answers] == [404, 404, 404]


async def test_requests_before_an_unreadable_one_are_answered(server: Running) -> None:
    for bad, status in ((b"GARBAGE\r\n\r\n", 400), (post("Transfer-Encoding: gzip, chunked", length=False), 501)):
        answers = await exchange(port_of(server.url), post() + get("/nowhere") + bad, ends=False)
        assert [answer.status for answer in answers] == [200, 404, status]


async def test_parser_takes_no_more_requests_than_its_queue_holds() -> None:
    parser = RequestParser(BaseProtocol(asyncio.get_running_loop()), asyncio.get_running_loop(), max_queue=2)
    data = get("/x") * 50
    found = len(parser.feed_data(data)[0])
    assert found == 2
    while found < 50:
        parser.message_consumed()
        taken = len(parser.feed_data(b"")[0])
        assert taken == 1
        found += taken


async def test_many_requests_of_one_segment_are_all_answered(server: Running) -> None:
    count = 300
    answers = await exchange(port_of(server.url), post() * count)
    assert [json.loads(answer.body)["offset"] for answer in answers] == list(range(1, count + 1))


async def test_http_1_0_request_without_a_host_is_served(server: Running) -> None:
    (answer,) = await exchange(port_of(server.url), b"GET /nowhere HTTP/1.0\r\nOrigin: http://x\r\n\r\n")
    assert answer.status == 404
    (answer,) = await exchange(port_of(server.url), b"POST /tickets HTTP/1.0\r\nOrigin: http://x\r\n\r\n")
    assert answer.code == "origin_refused"


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://service.example/tickets", "other.example", 201),
        ("http://SERVICE.example:80/tickets", "other.example", 201),
        ("http://other.example/tickets", "service.example", 403),
        ("/tickets", "SERVICE.example", 201),
        ("/tickets", "service.example:80", 201),
        ("/tickets", "service.example:8080", 403),
    ],
)
async def test_same_origin_is_compared_with_the_target(server: Running, target: str, host: str, status: int) -> None:
    """RFC 9112 §3.2.2: a target in absolute form takes precedence over Host."""
    fields = (f"Host: {host}", f"Authorization: Bearer {token()}", "Origin: http://service.example")
    data = "\r\n".join((f"POST {target} HTTP/1.1", *fields, "", "")).encode()
    (answer,) = await exchange(port_of(server.url), data)
    assert answer.status == status


async def test_cookies_on_several_lines_are_read() -> None:
    """RFC 9113 §8.2.3: HTTP/2 splits them."""
    origin = "https://app.example"
    async with serving(origins=(origin,), auth={"cookie": "session"}) as server, connected(server) as raw:
        fields = [*HANDSHAKE.items(), ("Origin", origin), ("Cookie", "a=b"), ("Cookie", f"session={token()}")]
        assert (await raw.request("/ws", fields)).status == 101
        assert (await raw.message())["type"] == "welcome"


async def test_ticket_given_twice_is_refused(server: Running) -> None:
    """A proxy and the service could otherwise read different tickets."""
    ticket = await new_ticket(server)
    async with connected(server) as raw:
        assert (await raw.request(f"/ws?ticket=x&ticket={ticket}", HANDSHAKE)).code == "unauthenticated"
    async with connected(server) as raw:
        assert (await raw.request(f"/ws?ticket={ticket}", HANDSHAKE)).status == 101, "it has not been used"


async def test_forwarded_addresses_on_several_lines_are_one_list() -> None:
    async with serving(proxy={"hops": 2}, limits={"connections_per_ip": 1}) as server, AsyncExitStack() as stack:
        for address, status in (("10.0.0.1", 101), ("10.0.0.2", 101), ("::ffff:10.0.0.1", 429)):
            raw = await stack.enter_async_context(connected(server))
            fields = [("X-Forwarded-For", f"9.9.9.9, {address}"), ("X-Forwarded-For", "10.1.1.1,")]
            assert (await raw.request("/ws", [*HANDSHAKE.items(), *fields])).status == status, address


# --- listening addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["::", "0:0:0:0:0:0:0:0"])
async def test_double_colon_serves_both_families_on_both_listeners(host: str) -> None:
    async with serving(host=host, ops_host=host) as server:
        for address in ("127.0.0.1", "::1"):
            (answer,) = await exchange(port_of(server.url), post(), host=address)
            assert answer.status == 200
            (answer,) = await exchange(port_of(server.ops_url), get("/healthz"), host=address)
            assert answer.status == 200


def test_workers_bind_the_port_on_both_families() -> None:
    with workers.reserved_port("::", 0) as port:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
                other.bind((address, port))
        shared = bind_sockets("::", port, reuse_port=True)
        assert {end.family for end in shared} == {socket.AF_INET, socket.AF_INET6}
        for end in shared:
            end.close()


@pytest.mark.parametrize(("host", "families"), [("0.0.0.0", {socket.AF_INET}), ("127.0.0.1", {socket.AF_INET})])
def test_address_of_one_family_is_bound_alone(host: str, families: set[int]) -> None:
    bound = bind_sockets(host, 0, reuse_port=False)
    assert {end.family for end in bound} == families
    for end in bound:
        end.close()


def test_double_colon_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel has IPv6 switched off: the family exists without an address."""
    bind = socket.socket.bind

    class NoIPv6(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(99, "Cannot assign requested address")
            bind(self, address)

    monkeypatch.setattr(socket, "socket", NoIPv6)
    bound = bind_sockets("::", 0, reuse_port=False)
    assert [end.family for end in bound] == [socket.AF_INET]
    bound[0].close()


async def test_port_in_use_is_reported_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"in use: :: port {port} \(settings host and port\)"):
            async with serving(host="::", port=port):
                pass


async def test_peers_keep_their_ipv4_addresses() -> None:
    """One socket for both families would give ::ffff:… addresses, which share the caps of one IPv6 network."""
    async with serving(host="::", proxy={"hops": 0}) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server.url))
        upgrade_queue = server.service.upgrade_queue
        assert upgrade_queue is not None
        await eventually(lambda: len(upgrade_queue.waiting) == 1)
        (protocol,) = upgrade_queue.waiting
        peer = protocol.peername
        assert isinstance(peer, tuple)
        assert peer[0] == "127.0.0.1"
        writer.close()
        await reader.read(-1)
