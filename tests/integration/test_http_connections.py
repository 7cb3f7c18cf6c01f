"""HTTP connections: caps, eviction of the longest wait, deadlines, and how refused ones are closed."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from math import inf
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from service.core.hooks import ClientContext
from service.core.identity import Identity
from service.web.http.request_queue import MAX_STARTED_PER_ITERATION, RequestQueue
from service.web.ws.upgrade_queue import MAX_DISCARDED_BYTES
from tests.support.authenticator import StubAuthenticator
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, DEADLINE, Running, eventually, passes, serving, token
from tests.support.raw import HANDSHAKE, TEXT, Raw, connected, frame, upgraded

GET = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_BODY = (
    b"POST /api/v1/channels/room:1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + API_KEY.encode() + b"\r\nContent-Length: 1000\r\n\r\n{"
)
PARTS = {
    "nothing": b"",
    "half a head": b"GET /ws HTTP/1.1\r\nHost: x\r\n",
    "half a head for aiohttp": b"POST /tickets HTTP/1.1\r\nHost",
    "half a body": HALF_BODY,
    "a request, answered": GET,
}


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def connection_count(server: Running) -> int:
    return len(server.service.http_connections)


async def open_connection(server: Running, stack: AsyncExitStack, part: bytes = b"", source: str = "127.0.0.1") -> Raw:
    """A connection that the service has counted, and that has sent these bytes."""
    raw = await stack.enter_async_context(connected(server, source=source))
    raw.write(part)
    if part == GET:
        assert (await raw.answer()).status == 404
    elif part:
        await eventually(lambda: raw.writer.transport.get_write_buffer_size() == 0)
        await wait_until_read(server)
    else:
        await wait_until_read(server)
    return raw


async def wait_until_read(server: Running) -> None:
    """Returns once the bytes sent before have been read."""
    async with server.http.get(f"{server.ops_url}/healthz") as response:
        assert response.status == 200


def deadlines_never_pass() -> AbstractAsyncContextManager[Running]:
    """A service whose time stands still: what closes a connection is no deadline, however busy the machine is."""
    return serving(clock=FakeClock(time.time()))


def stop_reading(raw: Raw) -> None:
    transport = raw.writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()


def is_open(raw: Raw) -> bool:
    return not raw.reader.at_eof()


async def assert_open(raws: list[Raw]) -> None:
    """Checks that the service has closed none of these."""
    for raw in raws:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(raw.reader.read(1), 0.05)


class TestCap:
    @pytest.mark.parametrize("part", PARTS)
    async def test_cap_closes_the_connection_that_has_waited_longest(self, part: str) -> None:
        async with (
            serving(limits={"http_connections": 4}) as server,
            server.client() as ann,
            AsyncExitStack() as stack,
        ):
            waiting = [await open_connection(server, stack, PARTS[part]) for _ in range(4)]
            for number in range(4):
                late = await open_connection(server, stack, GET)
                await waiting[number].gone()
                assert connection_count(server) == 4
                assert await server.metric("http_connections") == 4
                assert is_open(late)
            assert await server.metric("limit_hits_total", limit="http_connections") == 4
            assert await server.metric("max_http_connections") == 4
            await ann.silence()

    async def test_cap_with_a_thousand_idle_connections_keeps_no_client_out(self) -> None:
        async with (
            serving(limits={"http_connections": 50, "http_connections_per_ip": 50}) as server,
            AsyncExitStack() as stack,
        ):
            for _ in range(300):
                await stack.enter_async_context(connected(server))
            async with server.client("ben") as ben, server.client("ann"):
                await ben.silence()
            await eventually(lambda: connection_count(server) <= 50, lambda: connection_count(server))
            assert await server.metric("limit_hits_total", limit="http_connections_per_ip") >= 250

    async def test_cap_of_an_address_closes_only_its_own(self) -> None:
        async with serving(limits={"http_connections_per_ip": 2}) as server, AsyncExitStack() as stack:
            others = [await open_connection(server, stack, source="127.0.0.2") for _ in range(2)]
            mine = [await open_connection(server, stack) for _ in range(5)]
            await asyncio.gather(*(raw.gone() for raw in mine[:3]))
            await assert_open([*mine[3:], *others])
            assert await server.metric("limit_hits_total", limit="http_connections_per_ip") == 3
            assert await server.metric("limit_hits_total", limit="http_connections") == 0

    async def test_cap_of_an_address_does_not_apply_behind_proxies(self) -> None:
        async with (
            serving(limits={"http_connections_per_ip": 2, "http_connections": 5}, proxy={"hops": 1}) as server,
            AsyncExitStack() as stack,
        ):
            await assert_open([await open_connection(server, stack) for _ in range(5)])
            assert await server.metric("limit_hits_total", limit="http_connections_per_ip") == 0

    async def test_cap_does_not_count_websockets(self) -> None:
        async with serving(limits={"http_connections": 1}) as server, AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(upgraded(server, f"user-{number}")) for number in range(5)]
            on_route = await open_connection(server, stack, GET)
            answer = await on_route.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token()}"})
            assert answer.status == 101
            await eventually(lambda: connection_count(server) == 0, lambda: connection_count(server))
            await open_connection(server, stack)
            assert all(is_open(raw) for raw in (*raws, on_route))
            assert await server.metric("connections") == 6

    async def test_cap_does_not_count_closed_connections(self) -> None:
        clock = FakeClock(time.time())
        async with serving(clock=clock, limits={"http_connections": 3}) as server:
            for part in PARTS.values():
                async with AsyncExitStack() as stack:
                    for _ in range(3):
                        await open_connection(server, stack, part)
                    assert connection_count(server) == 3
                await wait_until_read(server)
                await passes(clock, 2)
                await eventually(lambda: connection_count(server) == 0, lambda: connection_count(server))
            assert await server.metric("limit_hits_total", limit="http_connections") == 0

    async def test_cap_does_not_close_a_request_in_hand(self) -> None:
        asked, opens = asyncio.Semaphore(0), asyncio.Event()

        class Slow(StubAuthenticator):
            async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
                asked.release()
                await opens.wait()
                return Identity("default", "ann")

        async with (
            serving(authenticator=Slow(), limits={"http_connections": 2}) as server,
            AsyncExitStack() as stack,
        ):
            upgrading = await stack.enter_async_context(connected(server))
            fields = HANDSHAKE | {"Host": "x", "Authorization": f"Bearer {token()}"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            upgrading.write(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode())
            await asyncio.wait_for(asked.acquire(), DEADLINE)
            posting = await stack.enter_async_context(connected(server))
            posting.write(b"POST /tickets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nContent-Length: 0\r\n\r\n")
            await asyncio.wait_for(asked.acquire(), DEADLINE)
            for _ in range(3):
                await (await stack.enter_async_context(connected(server))).gone()
            opens.set()
            assert (await upgrading.answer()).status == 101
            assert (await posting.answer()).status == 201


async def test_exhausted_descriptors_are_logged_once_a_minute() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock) as server:
        with structlog.testing.capture_logs() as log:
            limits = [inf]
            server.service.descriptors.start(lambda: limits[0])
            limits[0] = open_fds() // 2 + 1.0  # all are taken, even if what earlier tests have left is closed meanwhile
            await passes(clock, 1)
            for minutes in range(1, 4):
                told = [entry for entry in log if entry["event"] == "descriptors_exhausted"]
                assert len(told) == minutes
                assert told[-1]["limit"] == limits[0]
                assert told[-1]["open"] > 0
                await passes(clock, 60)
            [lowered] = [entry for entry in log if entry["event"] == "connections_lowered"]
            assert lowered["connections"] == await server.metric("max_connections")
            limits[0] = inf
            await passes(clock, 1)
            assert await server.metric("max_connections") == 15_000


class TestOps:
    async def test_ops_cap_with_idle_connections_keeps_no_probe_out(self) -> None:
        async with serving(limits={"ops_connections": 5}) as server, AsyncExitStack() as stack:
            raws = [await ops_connection(server, stack) for _ in range(40)]
            raws[-1].write(b"GET /healthz HT")
            async with asyncio.timeout(1):
                await wait_until_read(server)
            await asyncio.gather(*(raw.gone() for raw in raws[:35]))
            assert await server.metric("limit_hits_total", limit="ops_connections") >= 35
            assert await server.metric("ops_connections") <= 5

    async def test_ops_connection_with_half_a_head_has_a_deadline(self) -> None:
        clock = FakeClock(time.time())
        async with serving(clock=clock, deadlines={"header": 3}) as server, AsyncExitStack() as stack:
            silent = await ops_connection(server, stack)
            half = await ops_connection(server, stack)
            half.write(b"GET /healthz HTTP/1.1\r\nHost:")
            await wait_until_read(server)
            await passes(clock, 2.5)
            await assert_open([silent, half])
            await passes(clock, 2)
            await asyncio.gather(silent.gone(), half.gone())
            assert await server.metric("limit_hits_total", limit="header_deadline") == 2


async def ops_connection(server: Running, stack: AsyncExitStack) -> Raw:
    port = int(server.ops_url.rpartition(":")[2])
    raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
    stack.push_async_callback(raw.close)
    return raw


REFUSED = {"Authorization": "Bearer x.y.z"}


@asynccontextmanager
async def connected_via(server: Running, way: str) -> AsyncIterator[Raw]:
    """A connection whose next request is read by UpgradeQueue, or by aiohttp because it is not the first."""
    async with connected(server) as raw:
        if way == "route":
            assert (await raw.request("/nowhere")).status == 404
        yield raw


@pytest.mark.parametrize("way", ["queue", "route"])
class TestRefusedUpgrade:
    async def test_refused_upgrade_closes_its_connection(self, way: str) -> None:
        async with deadlines_never_pass() as server, connected_via(server, way) as raw:
            answer = await raw.request(headers=HANDSHAKE | REFUSED)
            assert (answer.status, answer.headers["connection"]) == (401, "close")
            await raw.gone()
            await eventually(lambda: connection_count(server) == 0 or way == "route")

    async def test_refused_upgrade_whose_peer_never_closes_frees_its_descriptor(self, way: str) -> None:
        async with serving() as server, AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(connected_via(server, way)) for _ in range(30)]
            fds = open_fds()
            for raw in raws:
                stop_reading(raw)
                lines = "".join(f"{name}: {value}\r\n" for name, value in {**HANDSHAKE, **REFUSED}.items())
                raw.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
            await eventually(lambda: open_fds() <= fds - len(raws), open_fds, within=3)

    async def test_refused_upgrade_with_frames_behind_it_is_answered(self, way: str) -> None:
        async with serving(outbox={"close_grace": 0.2}) as server, AsyncExitStack() as stack:
            raw = await stack.enter_async_context(connected_via(server, way))
            fds = open_fds()
            lines = "".join(f"{name}: {value}\r\n" for name, value in {**HANDSHAKE, **REFUSED}.items())
            raw.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + frame(TEXT, b"x") * 20)
            assert (await raw.answer()).status == 401
            await eventually(lambda: open_fds() <= fds - 1, open_fds, within=3)
            await eventually(lambda: connection_count(server) == 0, within=3)


async def test_refused_upgrade_that_goes_on_sending_is_reset() -> None:
    async with deadlines_never_pass() as server, connected(server) as raw:
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**HANDSHAKE, **REFUSED}.items())
        raw.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + b"x")
        assert (await raw.answer()).status == 401
        raw.write(bytes(MAX_DISCARDED_BYTES + 1))
        await eventually(lambda: connection_count(server) == 0)


async def test_upgrade_with_200_000_frames_behind_it_is_cut() -> None:
    async with deadlines_never_pass() as server, server.client() as ann, connected(server) as raw:
        lines = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
        flood = frame(TEXT) * 200_000
        raw.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + flood)
        await raw.gone()
        await ann.silence()


async def test_pipelined_requests_are_answered_one_by_one_in_order(server: Running) -> None:
    async with connected(server) as raw:
        raw.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(100)))
        raw.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert [(await raw.answer()).status for _ in range(101)] == [404] * 100 + [426]
        await raw.gone()


PUBLISH = (
    b"POST /api/v1/channels/room:1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + API_KEY.encode() + b"\r\n"
)
EVENT = b'{"type":"chat.message","data":{"text":"x"}}'


@pytest.mark.parametrize("framing", ["length", "chunks", "chunks of a byte"])
@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends its sending side"])
async def test_large_body_is_parsed_slice_by_slice(server: Running, framing: str, ends: bool) -> None:
    size = 30_000 if framing == "chunks of a byte" else 300_000
    body = EVENT + b" " * (size - len(EVENT))
    if framing == "length":
        sent = PUBLISH + b"Content-Length: %d\r\n\r\n" % size + body
    else:
        step = 1 if framing == "chunks of a byte" else 1_000
        chunks = (body[start : start + step] for start in range(0, size, step))
        sent = PUBLISH + b"Transfer-Encoding: chunked\r\n\r\n"
        sent += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    async with server.client("ben") as ben, connected(server) as raw:
        await ben.subscribe("room:1")
        raw.write(sent + GET)
        if ends:
            raw.writer.write_eof()
        assert [(await raw.answer()).status for _ in range(2)] == [200, 404]
        await ben.until("chat.message")
        if ends:
            await raw.gone()
        else:
            raw.write(GET)
            assert (await raw.answer()).status == 404


@pytest.mark.parametrize("framing", [b"Content-Length: 100000000", b"Transfer-Encoding: chunked"])
async def test_refused_request_is_answered_without_reading_its_body(framing: bytes) -> None:
    async with serving(outbox={"close_grace": 0.3}) as server, connected(server) as raw:
        raw.write(b"POST /tickets HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        chunk = b"186a0\r\n" + bytes(100_000) + b"\r\n"
        for _ in range(100):  # more than the kernel takes
            raw.write(chunk)
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        await raw.gone(within=3)
        await eventually(lambda: connection_count(server) == 0, within=3)


async def test_requests_of_a_crowd_start_a_few_per_iteration() -> None:
    queue = RequestQueue().middleware()
    begun, most = 0, 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal begun
        begun += 1
        return web.Response()

    async def iterations() -> None:
        nonlocal most
        while begun < 50:
            before = begun
            await asyncio.sleep(0)
            most = max(most, begun - before)

    request = make_mocked_request("GET", "/")
    requests = [asyncio.ensure_future(queue(request, handler)) for _ in range(60)]
    for gone in requests[20:30]:
        gone.cancel()
    await asyncio.wait_for(iterations(), DEADLINE)
    await asyncio.wait(requests)
    assert begun == 50
    assert most == MAX_STARTED_PER_ITERATION


REQUESTS = {
    "not found": (404, GET),
    "of a method that does not exist": (405, b"PUT /tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
    "unauthenticated": (401, b"POST /tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
    "of a preflight": (204, b"OPTIONS /ws HTTP/1.1\r\nHost: x\r\n\r\n"),
    "answered": (426, b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_request_leaves_no_garbage_to_collect(server: Running, name: str) -> None:
    """Objects that survive one collection are examined again only after millions of allocations, so a flood would grow
    the process."""
    status, data = REQUESTS[name]
    async with connected(server) as raw:
        raw.write(data)
        assert (await raw.answer()).status == status
        gc.collect()
        gc.freeze()  # so that the next collection looks only at what comes now
        gc.disable()
        try:
            for _ in range(20):
                raw.write(data)
                await raw.answer()
            assert gc.collect() < 20
        finally:
            gc.enable()
            gc.unfreeze()


PLENTY = {"per_second": 1e6, "burst": 1_000_000}
"""Of refused requests too: otherwise they would close the connection."""


async def test_pipelined_requests_with_unread_responses_are_bounded() -> None:
    """At most one buffer waits for such a peer, and it is cut at its deadline."""
    clock = FakeClock(time.time())
    deadlines = {"header": 3, "keep_alive": 1}
    async with (
        serving(clock=clock, deadlines=deadlines, limits={"connection_rate": PLENTY}) as server,
        server.client() as ann,
        connected(server, receive_buffer=4096) as raw,
    ):
        stop_reading(raw)
        raw.write(GET * 50_000)
        await eventually(lambda: unsent_bytes(server) > 65_536, lambda: unsent_bytes(server))
        await ann.silence()
        await passes(clock, 1)
        assert unsent_bytes(server) < 200_000
        await passes(clock, 6)
        await eventually(lambda: connection_count(server) == 0, lambda: connection_count(server))
        assert await server.metric("limit_hits_total", limit="header_deadline") == 1
        await ann.silence()


def unsent_bytes(server: Running) -> int:
    """Bytes that wait in the service for peers to read."""
    return sum(transport.get_write_buffer_size() for transport in server.service.http_connections)
