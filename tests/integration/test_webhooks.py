"""Webhooks about events: what an endpoint is told, in which order, and what happens when it does not accept them."""

from __future__ import annotations

import asyncio
import gzip
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.core.webhooks import Cursor, Entry, Webhooks
from service.errors import ErrorCode, ServiceError
from service.realtime.webhooks.records import Target
from tests.stores.certificates import Certificates
from tests.support import harness
from tests.support.backend import SECRET, serving_backend
from tests.support.exported import exported
from tests.support.harness import Client, Running, eventually
from tests.support.receiver import Receiver, receiving

CONTRACT = Path(__file__).parent / "webhooks.yaml"
ROOM = "room:1"
FAST = {"per_second": 10_000, "burst": 10_000}


@asynccontextmanager
async def serving(*endpoints: dict[str, Any], **groups: Any) -> AsyncIterator[Running]:
    webhooks = {"endpoints": endpoints, **groups.pop("webhooks", {})}
    limits = {"connection_rate": FAST, "user_rate": FAST}
    async with harness.serving(contract=CONTRACT, webhooks=webhooks, limits=limits, **groups) as server:
        yield server
        await server.at_rest()


@asynccontextmanager
async def scene(**endpoint: Any) -> AsyncIterator[tuple[Running, Receiver, Client]]:
    """A receiver, a service that tells it, and a subscribed client."""
    async with receiving() as receiver, serving(receiver.endpoint(**endpoint)) as server, server.client() as ann:
        await ann.subscribe(ROOM)
        yield server, receiver, ann


def face(server: Running) -> Webhooks:
    """What the backend API uses."""
    assert server.service.node.webhooks is not None
    return server.service.node.webhooks


def count(server: Running, outcome: str) -> float:
    """How many entries had an outcome."""
    return server.service.metrics.webhooks.webhooks.labels("archive", outcome).value


async def say(client: Client, number: int, type_: str = "chat.message", **more: Any) -> dict[str, Any]:
    return await client.ask(type_, channel=ROOM, data={"n": number}, **more)


async def test_endpoint_is_told_of_each_published_event() -> None:
    async with scene() as (_, receiver, ann):
        ack = await say(ann, 1)
        assert (ack["type"], ack["offset"]) == ("ack", 1)
        await say(ann, 2, "chat.quiet")
        await say(ann, 3)
        await eventually(lambda: len(receiver.entries) == 2)
        first, second = receiver.entries
        event = first["event"]
        assert {**first, "event": ...} == {
            "id": first["id"],
            "type": "event.published",
            "at": event["at"],
            "channel": ROOM,
            "event": ...,
        }
        assert first["id"].startswith("wh_")
        assert {**event, "at": 0, "epoch": ""} == {
            "type": "chat.message",
            "id": "q2",
            "at": 0,
            "from": "ann",
            "data": {"n": 1},
            "offset": 1,
            "epoch": "",
        }
        assert second["event"]["offset"] == 3
        delivery, request = receiver.deliveries[0], receiver.requests[0]
        assert (delivery["endpoint"], delivery["tenant"]) == ("archive", "default")
        assert request.headers["Content-Type"] == "application/json"
        assert not {"Cookie", "Authorization"} & set(request.headers)


async def test_latest_event_is_told_with_its_key_and_version_and_so_is_its_removal() -> None:
    async with scene() as (_, receiver, ann):
        await ann.ask("score.team", channel=ROOM, data={"team": "red", "n": 1})
        await ann.ask("score.team", channel=ROOM, key="red", removed=True)
        await eventually(lambda: len(receiver.entries) == 2)
        value, removal = (entry["event"] for entry in receiver.entries)
        assert (value["key"], value["rev"], value["data"]["n"]) == ("red", 1, 1)
        assert (removal["key"], removal["rev"], removal["removed"]) == ("red", 2, True)
        assert not {"offset", "data"} & set(removal)


async def test_value_that_the_backend_takes_back_is_told_as_removed() -> None:
    async with scene() as (server, receiver, ann):
        await ann.send(type="score.team", channel=ROOM, id="s-1", data={"team": "red"})
        await ann.until("ack", id="s-1")
        async with server.http.delete(
            f"{server.url}/api/v1/channels/{ROOM}/events/s-1", headers={"Authorization": f"Bearer {harness.API_KEY}"}
        ) as response:
            assert response.status == 200
        await eventually(lambda: len(receiver.entries) == 2)
        removal = receiver.entries[1]["event"]
        assert (removal["key"], removal["rev"], removal["removed"], "from" in removal) == ("red", 2, True, False)


async def test_event_of_the_backend_is_told_without_a_sender() -> None:
    async with scene() as (server, receiver, _):
        await server.publish(ROOM, {"type": "chat.message", "id": "m", "data": {}})
        await eventually(lambda: len(receiver.entries) == 1)
        assert "from" not in receiver.entries[0]["event"]


async def test_repeated_id_is_told_once() -> None:
    async with scene() as (server, receiver, ann):
        for number in range(3):
            await ann.send(type="chat.message", channel=ROOM, id="same", data={"n": number})
            await ann.until("ack", id="same")
        await say(ann, 9)
        await eventually(lambda: [entry["event"]["data"]["n"] for entry in receiver.entries] == [0, 9])
        assert count(server, "duplicate") == 2


async def test_refused_publish_is_not_told_and_holds_nobody_up() -> None:
    async with scene() as (_, receiver, ann):
        refused = await ann.ask("score.team", channel=ROOM, data={"team": "red"}, if_rev=7)
        assert refused["code"] == "conflict"
        await say(ann, 1)
        await ann.ask("score.team", channel=ROOM, data={"team": "red"})
        await eventually(lambda: len(receiver.entries) == 2)
        assert [entry["event"]["type"] for entry in receiver.entries] == ["chat.message", "score.team"]


async def test_other_tenants_of_an_endpoint_are_not_told() -> None:
    async with scene(tenants=["elsewhere"]) as (server, receiver, ann):
        assert (await say(ann, 1))["type"] == "ack"
        assert await server.metric("webhook_queues", endpoint="archive") >= 0
        assert receiver.entries == []


async def test_event_that_a_hook_has_changed_is_told_as_it_was_published() -> None:
    async with serving_backend() as backend, receiving() as receiver:
        backend.reply = {"allow": True, "data": {"n": "h***o"}}
        hooks = {"endpoints": [backend.endpoint()]}
        async with serving(receiver.endpoint(), hooks=hooks) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            assert (await say(ann, 1, "chat.checked"))["type"] == "ack"
            backend.reply = {"allow": False}
            assert (await say(ann, 2, "chat.checked"))["code"] == "forbidden"
            await say(ann, 3)
            await eventually(lambda: [one["event"]["data"]["n"] for one in receiver.entries] == ["h***o", 3])


async def test_many_events_come_in_few_deliveries_and_in_order() -> None:
    async with scene(batch=50) as (server, receiver, ann):
        slow = asyncio.Event()

        async def wait(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            await slow.wait()
            return web.Response(status=204)

        receiver.reply = wait
        for number in range(120):
            await say(ann, number)
        slow.set()
        await eventually(lambda: len(receiver.entries) == 120)
        assert receiver.offsets(ROOM) == list(range(1, 121))
        assert max(len(delivery["entries"]) for delivery in receiver.deliveries) <= 50
        assert len(receiver.deliveries) < 20
        assert count(server, "delivered") == 120
        assert await server.metric("webhook_waiting", endpoint="archive") == 0


# --- failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 401, 408, 429, 500])
async def test_delivery_is_repeated_while_the_endpoint_accepts_nothing(status: int) -> None:
    async with scene() as (server, receiver, ann):
        receiver.reply = status
        await say(ann, 1)
        await eventually(lambda: len(receiver.deliveries) == 1)
        await say(ann, 2)
        [one] = [one for one in await face(server).status("archive", "default") if one.failure]
        assert (one.failure, one.owner) == (f"answered {status}", server.service.node.cluster.node_id)
        assert one.waiting >= 1
        receiver.reply = 200
        await eventually(lambda: receiver.offsets(ROOM) == [1, 2])
        assert count(server, "status") >= 1
        ids = [request.headers["webhook-id"] for request in receiver.requests]
        assert ids[0] == ids[1] != ids[-1]


async def test_retry_after_of_the_endpoint_is_respected() -> None:
    async with scene() as (_, receiver, ann):

        async def wait(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            return web.Response(status=429, headers={"Retry-After": "3"})

        receiver.reply = wait
        await say(ann, 1)
        await eventually(lambda: len(receiver.deliveries) == 1)
        receiver.reply = 204
        started = asyncio.get_running_loop().time()
        await eventually(lambda: len(receiver.entries) == 1)
        assert asyncio.get_running_loop().time() - started > 2.5


async def test_poison_entry_becomes_a_dead_letter_and_the_others_are_delivered() -> None:
    async with receiving() as receiver:

        async def refuse(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            is_bad = any(entry["event"]["data"]["n"] == 3 for entry in delivery["entries"])
            return web.Response(status=422 if is_bad else 204)

        receiver.reply = 503
        async with serving(receiver.endpoint(), webhooks={"attempts": 2}) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            for number in range(1, 7):
                await say(ann, number)
            receiver.reply = refuse
            await eventually(lambda: len(receiver.entries) == 5)
            assert receiver.offsets(ROOM) == [1, 2, 4, 5, 6]
            assert count(server, "dead") == 1
            [letter] = (await face(server).dead_letters("archive", "default", None, 10)).letters
            assert letter.entry.event is not None
            assert (letter.entry.event.offset, letter.reason) == (3, "answered 422")
            alone = [one for one in receiver.deliveries if [e["event"]["offset"] for e in one["entries"]] == [3]]
            assert len(alone) == 2
            await eventually(lambda: exported(server.service.metrics, "webhook_dead_letters", endpoint="archive") == 1)

            receiver.reply = 204
            assert await face(server).replay("archive", "default", ids=[letter.entry.id]) == 1
            await eventually(lambda: len(receiver.entries) == 6)
            assert receiver.entries[-1]["id"] == letter.entry.id
            assert (await face(server).dead_letters("archive", "default", None, 10)).letters == []
            await eventually(lambda: exported(server.service.metrics, "webhook_dead_letters", endpoint="archive") == 0)


async def test_dead_letters_are_read_in_pages_and_dropped() -> None:
    async with receiving() as receiver:
        receiver.reply = 400
        async with serving(receiver.endpoint(batch=1), webhooks={"attempts": 1}) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            for number in range(5):
                await say(ann, number)
            await eventually(lambda: count(server, "dead") >= 5)
            webhooks = face(server)
            first = await webhooks.dead_letters("archive", "default", None, 2)
            second = await webhooks.dead_letters("archive", "default", first.next, 10)
            assert [len(first.letters), len(second.letters), second.next] == [2, 3, None]
            assert await webhooks.drop("archive", "default", ids=[first.letters[0].entry.id]) == 1
            assert await webhooks.drop("archive", "default", dead_letters=True) == 4
            assert (await webhooks.dead_letters("archive", "default", None, 10)).letters == []


async def test_entry_that_is_too_old_becomes_a_dead_letter() -> None:
    async with receiving() as receiver:
        receiver.reply = 500
        async with serving(receiver.endpoint(), webhooks={"keep": 60}) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            await say(ann, 1)
            await eventually(lambda: len(receiver.deliveries) >= 1)
            clock = server.service.store_clock
            now = clock.wall
            clock.wall = lambda: now() + 61
            await eventually(lambda: count(server, "dead") >= 1)
            [letter] = (await face(server).dead_letters("archive", "default", None, 10)).letters
            assert letter.reason == "answered 500"


async def test_entries_that_wait_together_for_too_long_become_dead_letters() -> None:
    async with receiving() as receiver:
        receiver.reply = 500
        async with serving(receiver.endpoint(), webhooks={"keep": 60}) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            await asyncio.gather(*(server.publish(ROOM, {"type": "chat.message", "data": {"n": n}}) for n in range(8)))
            await eventually(lambda: any(len(delivery["entries"]) > 1 for delivery in receiver.deliveries))
            clock = server.service.store_clock
            now = clock.wall
            clock.wall = lambda: now() + 61
            await eventually(lambda: count(server, "dead") == 8)
            letters = (await face(server).dead_letters("archive", "default", None, 10)).letters
            assert {letter.reason for letter in letters} == {"answered 500"}


async def test_dead_letters_are_counted_after_a_lease_was_lost() -> None:
    """The process was stopped for longer than a lease, and goes on."""
    async with receiving() as receiver:
        receiver.reply = 400
        async with serving(receiver.endpoint(), webhooks={"attempts": 1}) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            await say(ann, 1)
            await eventually(lambda: exported(server.service.metrics, "webhook_dead_letters", endpoint="archive") == 1)
            dispatchers = face(server).ownership.dispatchers  # type: ignore[attr-defined]  # no part of the port
            before = set(dispatchers.values())
            clock = server.service.store_clock
            wall, monotonic = clock.wall, clock.monotonic
            clock.wall, clock.monotonic = (lambda: wall() + 15), (lambda: monotonic() + 15)
            await eventually(lambda: len(dispatchers) == 4 and before.isdisjoint(dispatchers.values()))
            await say(ann, 2)
            await eventually(lambda: exported(server.service.metrics, "webhook_dead_letters", endpoint="archive") == 2)


async def test_repeats_do_not_hold_up_what_follows() -> None:
    async with scene(batch=1) as (server, receiver, ann):
        receiver.reply = 500
        await say(ann, 0)
        await eventually(lambda: len(receiver.deliveries) == 1)
        for _ in range(20):
            await ann.send(type="chat.message", channel=ROOM, id="same", data={"n": 1})
            await ann.until("ack", id="same")
        await say(ann, 2)
        receiver.reply = 204
        await eventually(lambda: len(receiver.entries) >= 1)
        started = asyncio.get_running_loop().time()
        await eventually(lambda: receiver.offsets(ROOM) == [1, 2, 3])
        assert asyncio.get_running_loop().time() - started < 1.5
        assert count(server, "duplicate") == 19


async def test_delivered_entries_are_replayed_since_a_time() -> None:
    async with scene() as (server, receiver, ann):
        for number in range(3):
            await say(ann, number)
        await eventually(lambda: len(receiver.entries) == 3)
        since = receiver.entries[1]["at"]
        wanted = [entry["id"] for entry in receiver.entries if entry["at"] >= since]
        log = server.service.node.webhook_log
        assert log is not None
        queues = [log.state(Target("archive", "default").queue(number)) for number in range(4)]
        await eventually(lambda: all(queue.waiting == 0 for queue in queues))  # the cursors are reported a little later
        assert await face(server).replay("archive", "default", since=since) == len(wanted)
        await eventually(lambda: [entry["id"] for entry in receiver.entries[3:]][-len(wanted) :] == wanted)


async def test_unknown_endpoints_and_queues_are_not_found() -> None:
    async with scene() as (server, _, _):
        for call in (
            face(server).status("other", "default"),
            face(server).status("archive", "other"),
            face(server).read("archive", "default", 4, None, 10),
        ):
            with pytest.raises(ServiceError) as caught:
                await call
            assert caught.value.code is ErrorCode.NOT_FOUND


async def test_entries_are_kept_for_readers_without_an_address() -> None:
    endpoint = {"name": "archive", "tenants": ["default"]}
    async with serving(endpoint, webhooks={"queues": 1}) as server, server.client() as ann:
        await ann.subscribe(ROOM)
        for number in range(5):
            await say(ann, number)
        webhooks = face(server)
        entries: list[Entry] = []
        sizes = []
        cursor: Cursor | None = None
        async with asyncio.timeout(harness.DEADLINE):
            while len(entries) < 5:  # results follow their events soon
                page = await webhooks.read("archive", "default", 0, cursor, 2)
                entries += page.entries
                sizes.append(len(page.entries))
                cursor = Cursor.parse(str(page.next))
        assert [one.event.offset for one in entries if one.event] == [1, 2, 3, 4, 5]
        assert max(sizes) == 2
        assert [one.waiting for one in await webhooks.status("archive", "default")] == [0]
        again = await webhooks.read("archive", "default", 0, None, 10)
        assert ([one.id for one in again.entries], again.has_more) == ([one.id for one in entries], False)
        assert (await webhooks.read("archive", "default", 0, None, 10, since=entries[-1].at + 1)).entries == []


async def test_full_queue_refuses_events_until_there_is_space() -> None:
    async with receiving() as receiver:
        receiver.reply = 500
        webhooks = {"queues": 1, "queue_entries": 100}
        async with serving(receiver.endpoint(), webhooks=webhooks) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            accepted = 0
            while (reply := await say(ann, accepted))["type"] == "ack":
                accepted += 1
            assert 50 <= accepted <= 100
            assert (reply["code"], reply["retryable"]) == ("overloaded", True)
            assert reply["details"]["endpoint"] == "archive"
            assert 1 <= reply["details"]["retry_after"] <= 2
            assert (await say(ann, 0, "chat.quiet"))["type"] == "ack"
            receiver.reply = 204
            await eventually(lambda: len(receiver.once) == accepted)
            queue = server.service.node.webhook_log
            assert queue is not None
            await eventually(lambda: queue.state(Target("archive", "default").queue(0)).waiting < 100)
            assert (await say(ann, 0))["type"] == "ack"


async def test_reason_of_a_failure_does_not_show_the_address() -> None:
    """Addresses of webhooks often hold a secret, and the reason is read by everybody who reads logs and the API."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-no_http\r\n\r\n")
        await writer.drain()
        writer.close()

    async with receiving() as receiver, await asyncio.start_server(lie, "127.0.0.1", 0) as liar:
        port = liar.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/hidden-path"
        async with serving(receiver.endpoint(url=url)) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            await say(ann, 1)
            await eventually(lambda: count(server, "unreachable") > 0)
            [one] = [one for one in await face(server).status("archive", "default") if one.failure]
            assert one.failure is not None
            assert "hidden-path" not in one.failure, one.failure


# --- the way to the endpoint --------------------------------------------------------------------------------------------


async def test_new_secret_signs_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_text(SECRET)
    new = "whsec_" + "bmV3IHNlY3JldCBvZiB0aGUgYmFja2VuZCBmb3IgdGVzdHMh"
    async with scene(secrets=[], secrets_file=file) as (_, receiver, ann):
        await say(ann, 1)
        await eventually(lambda: len(receiver.entries) == 1)
        receiver.secrets = [new]
        file.write_text(f"{SECRET}\n{new}\n")
        os.utime(file, (1, 1))
        await say(ann, 2)
        await eventually(lambda: receiver.offsets(ROOM) == [1, 2])


async def test_certificate_of_the_endpoint_is_checked(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    async with receiving(tls=context) as receiver:
        async with serving(receiver.endpoint()) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            await say(ann, 1)
            await eventually(lambda: count(server, "unreachable") > 0)
            assert receiver.deliveries == []
        async with serving(receiver.endpoint(ca=made.ca)) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            await say(ann, 1)
            await eventually(lambda: len(receiver.entries) == 1)


async def test_redirect_is_not_followed() -> None:
    async with receiving() as other, scene() as (server, receiver, ann):

        async def redirect(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": other.url})

        receiver.reply = redirect
        await say(ann, 1)
        await eventually(lambda: count(server, "status") > 0)
        receiver.reply = 204
        await eventually(lambda: len(receiver.entries) == 1)
        assert other.deliveries == []


async def test_slow_endpoint_is_given_up_after_its_timeout_and_asked_again() -> None:
    async with scene(timeout=0.3) as (server, receiver, ann):

        async def hang(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        receiver.reply = hang
        await say(ann, 1)
        await eventually(lambda: count(server, "timeout") > 0)
        receiver.reply = 204
        await eventually(lambda: len(receiver.entries) == 1)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65_536)


async def silent_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "10"})
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def bomb(request: web.Request) -> web.StreamResponse:
    packed = gzip.compress(bytes(50_000_000))
    return web.Response(body=packed, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("body", [endless, silent_body, bomb])
async def test_body_of_a_reply_does_not_count(body: Any) -> None:
    async with scene() as (server, receiver, ann):

        async def reply(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            receiver.entries += delivery["entries"]
            return await body(request)  # type: ignore[no-any-return]  # one of the functions above

        receiver.reply = reply
        await say(ann, 1)
        await say(ann, 2)
        await eventually(lambda: count(server, "delivered") >= 2)
        assert [entry["event"]["offset"] for entry in receiver.once] == [1, 2]


async def test_clients_cannot_direct_deliveries_elsewhere() -> None:
    """Every field of an event that a client writes holds an address, and only the endpoint of the settings is asked."""
    async with receiving() as other, scene() as (_, receiver, ann):
        address = other.url
        data = {"url": address, "webhook": {"endpoint": address}, "team": address, "n": 1}
        await ann.send(type="chat.message", channel=ROOM, id=address, data=data)
        await ann.until("ack", id=address)
        await ann.ask("score.team", channel=ROOM, data=data)
        await eventually(lambda: len(receiver.entries) == 2)
        assert receiver.entries[0]["event"]["id"] == address
        assert other.deliveries == []


async def test_node_without_endpoints_has_no_parts_for_webhooks() -> None:
    async with harness.serving(contract=CONTRACT) as server, server.client() as ann:
        node = server.service.node
        assert (node.webhooks, node.webhook_log) == (None, None)
        await ann.subscribe(ROOM)
        assert (await say(ann, 1))["type"] == "ack"
        assert not [name for name in await server.metrics() if "webhook" in name and "{" in name]
