"""Hooks of the backend about publishes: what it is asked, what its answers do, and what happens without an answer."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from service.adapters.http_hooks.breaker import MAX_FAILURES
from tests.stores.certificates import Certificates
from tests.stores.nats_server import NatsServer
from tests.stores.redis_server import RedisServer
from tests.support import harness
from tests.support.backend import BOMB, SECRET, Backend, endless, hang, reply_text, serving_backend
from tests.support.clock import FakeClock
from tests.support.harness import Client, Running, eventually, token

CONTRACT = Path(__file__).parent / "hooks.yaml"
ROOM = "room:1"
HELLO = {"text": "hello"}


@asynccontextmanager
async def serving(*endpoints: dict[str, Any], **groups: Any) -> AsyncIterator[Running]:
    async with harness.serving(contract=CONTRACT, hooks={"endpoints": endpoints}, **groups) as server:
        yield server
        await server.at_rest()


@asynccontextmanager
async def scene(**endpoint: Any) -> AsyncIterator[tuple[Running, Backend, Client]]:
    """A backend, a service that asks it, and a subscribed client."""
    async with serving_backend() as backend, serving(backend.endpoint(**endpoint)) as server, server.client() as ann:
        await ann.subscribe(ROOM)
        yield server, backend, ann


async def say(client: Client, type_: str = "chat.message", data: Any = HELLO, **more: Any) -> dict[str, Any]:
    return await client.ask(type_, channel=ROOM, data=data, **more)


async def outcomes(server: Running) -> dict[str, float]:
    """The outcomes that were counted."""
    prefix = 'tidewire_hooks_total{endpoint="moderation",outcome="'
    metrics = await server.metrics()
    return {name[len(prefix) : -2]: n for name, n in metrics.items() if name.startswith(prefix) and n}


async def test_backend_is_asked_about_each_publish_of_a_client_and_its_answer_counts() -> None:
    async with scene() as (server, backend, ann):
        assert (await say(ann))["offset"] == 1
        assert backend.questions == [
            {
                "hook": "publish",
                "tenant": "default",
                "user": "ann",
                "sender": "ann",
                "channel": ROOM,
                "event": {"type": "chat.message", "id": "q2", "data": HELLO},
            }
        ]
        (request,) = backend.requests
        assert request.headers["Content-Type"] == "application/json"
        assert not {"Cookie", "Authorization"} & set(request.headers)

        backend.reply = {"allow": False, "reason": "no links"}
        refused = await say(ann)
        assert (refused["type"], refused["code"], refused["retryable"]) == ("error", "forbidden", False)
        assert refused["details"] == {"path": "$.type", "reason": "no links"}

        backend.reply = {"allow": True, "data": {"text": "h***o"}, "since": "a later version"}
        assert (await say(ann))["offset"] == 2
        events = (await ann.ask("history", channel=ROOM, limit=10))["events"]
        assert [event["data"]["text"] for event in events] == ["hello", "h***o"]
        assert await outcomes(server) == {"allowed": 1, "denied": 1, "changed": 1}


async def test_removals_and_emits_are_asked_about_but_no_publishes_of_the_backend() -> None:
    async with scene() as (server, backend, ann):
        assert (await say(ann, "chat.cursor", {"user": "ann"}))["rev"] == 1
        backend.reply = {"allow": False}
        refused = await ann.ask("chat.cursor", channel=ROOM, key="ann", removed=True)
        assert refused["code"] == "forbidden"
        assert backend.questions[-1]["event"] == {"type": "chat.cursor", "id": "q3", "key": "ann", "removed": True}
        backend.reply = {"allow": True}
        assert (await ann.ask("chat.cursor", channel=ROOM, key="ann", removed=True))["rev"] == 2

        backend.reply = {"allow": False, "reason": "closed"}
        async with server.http.post(
            f"{server.url}/emit",
            json={"channel": ROOM, "type": "chat.open", "data": 1, "id": "e-1"},
            headers={"Authorization": f"Bearer {token()}"},
        ) as response:
            assert (response.status, (await response.json())["details"]["reason"]) == (403, "closed")
        asked = len(backend.questions)
        await server.publish(ROOM, {"type": "chat.message", "data": HELLO})
        assert (await say(ann, "chat.plain"))["type"] == "ack"
        assert len(backend.questions) == asked


async def test_nothing_in_an_event_chooses_whom_to_ask() -> None:
    async with serving_backend() as target, scene() as (_, backend, ann):
        host = target.url.split("/")[2]
        for number, text in enumerate((target.url, f"//{host}/hooks", f"@{host}", "file:///etc/passwd", "../../hooks")):
            await ann.send(type="chat.message", id=f"{text}{number}"[:64], channel=ROOM, data={"text": text})
            assert (await ann.until("ack"))["offset"] == number + 1
            assert (await say(ann, "chat.cursor", {"user": text}))["type"] == "ack"
            assert (await ann.ask("chat.cursor", channel=ROOM, key=text, removed=True))["type"] == "ack"
        assert target.questions == []
        assert {str(request.url) for request in backend.requests} == {backend.url}
        assert len(backend.questions) == 15


async def test_what_the_gate_refuses_is_not_asked_and_answers_pass_it_again() -> None:
    async with scene() as (server, backend, ann):
        assert (await say(ann, data={"text": 1}))["code"] == "invalid_data"
        assert backend.questions == []
        for data in ({"text": "x" * 101}, {"other": 1}, None, {"text": "x" * 200_000}):
            backend.reply = {"allow": True, "data": data}
            refused = await say(ann)
            assert (refused["code"], refused["retryable"], refused["details"]) == (
                "hook_unavailable",
                True,
                {"reason": "bad_reply"},
            )
        backend.reply = lambda request: reply_text('{"allow": true, "data": {"text": "a", "text": "b"}}')
        assert (await say(ann))["code"] == "hook_unavailable"
        assert await outcomes(server) == {"bad_reply": 5}
        assert (await ann.ask("history", channel=ROOM, limit=10))["events"] == []


@pytest.mark.parametrize("store", [RedisServer, NatsServer])
async def test_answers_count_with_each_store(store: type[RedisServer | NatsServer]) -> None:
    async with serving_backend() as backend, store() as broker:
        settings = {"url": broker.url}
        async with serving(backend.endpoint(), broker_settings=settings) as server, server.client() as ann:
            await ann.subscribe(ROOM)
            assert (await say(ann))["offset"] == 1
            backend.reply = {"allow": False}
            assert (await say(ann))["code"] == "forbidden"
            backend.reply = {"allow": True, "data": {"text": "changed"}}
            await ann.send(type="chat.message", id="once", channel=ROOM, data=HELLO)
            await ann.send(type="chat.message", id="once", channel=ROOM, data=HELLO)
            acks = [await ann.until("ack", id="once") for _ in range(2)]
            assert [(ack["offset"], ack.get("duplicate", False)) for ack in acks] == [(2, False), (2, True)]
            events = (await ann.ask("history", channel=ROOM, limit=10))["events"]
            assert [event["data"]["text"] for event in events] == ["hello", "changed"]


async def test_rights_that_end_during_the_wait_count() -> None:
    async with scene() as (server, backend, ann):
        answer = asyncio.Event()

        async def reply(request: web.Request) -> web.StreamResponse:
            await answer.wait()
            return web.json_response({"allow": True})

        backend.reply = reply
        await ann.send(type="chat.message", id="m", channel=ROOM, data=HELLO)
        await backend.asked.wait()
        async with server.http.post(
            f"{server.url}/api/v1/users/ann/unsubscribe",
            json={"channel": ROOM},
            headers={"Authorization": f"Bearer {harness.API_KEY}"},
        ) as response:
            assert response.status == 200, await response.text()
        await ann.until("unsubscribed")
        answer.set()
        assert (await ann.until("error", id="m"))["code"] == "not_subscribed"


NO_ANSWERS = {
    "not json": (lambda _: reply_text("<html>"), "bad_reply"),
    "not utf-8": (lambda _: reply_text(b'{"allow": true, "reason": "\xff"}'), "bad_reply"),
    "empty": (lambda _: reply_text(""), "bad_reply"),
    "a list": (lambda _: reply_text("[]"), "bad_reply"),
    "no verdict": (lambda _: reply_text("{}"), "bad_reply"),
    "another type": (lambda _: reply_text('{"allow": "yes"}'), "bad_reply"),
    "nested": (lambda _: reply_text('{"allow": true, "x": ' + "[" * 50_000 + "]" * 50_000 + "}"), "bad_reply"),
    "refused with data": (lambda _: reply_text('{"allow": false, "data": {"text": "x"}}'), "bad_reply"),
    "gzip": (lambda _: reply_text(BOMB, headers={"Content-Encoding": "gzip"}), "bad_reply"),
    "endless": (endless, "bad_reply"),
    "redirect": (lambda _: reply_text("", status=307, headers={"Location": "/hooks"}), "status"),
    "no content": (lambda _: reply_text("", status=204), "status"),
    "fault": (lambda _: reply_text('{"allow": true}', status=500), "status"),
    "hanging": (hang, "timeout"),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_without_an_answer_the_contract_says_whether_the_event_is_published(name: str) -> None:
    reply, outcome = NO_ANSWERS[name]
    async with scene(timeout=0.2 if outcome == "timeout" else 5) as (server, backend, ann):
        backend.reply = reply
        refused = await say(ann)
        assert (refused["code"], refused["retryable"]) == ("hook_unavailable", True)
        assert refused["details"] == {"reason": outcome}
        assert (await say(ann, "chat.open"))["offset"] == 1
        assert await outcomes(server) == {outcome: 2}
        assert len(backend.requests) == 2  # a redirect is not followed


async def test_backend_that_is_gone_is_not_asked_for_a_while_and_then_tried_again() -> None:
    clock = FakeClock(time.time())
    async with serving_backend() as backend, serving(backend.endpoint(), clock=clock) as server, server.client() as ann:
        await ann.subscribe(ROOM)
        backend.reply = lambda _: reply_text("", status=503)
        for _ in range(MAX_FAILURES):
            assert (await say(ann))["details"] == {"reason": "status"}
        assert await server.metric("hook_breaker_open", endpoint="moderation") == 1
        asked = len(backend.questions)
        assert (await say(ann))["details"] == {"reason": "open"}
        assert len(backend.questions) == asked
        clock.advance(1)
        assert (await say(ann))["details"] == {"reason": "status"}  # one trial
        assert (await say(ann))["details"] == {"reason": "open"}
        backend.reply = {"allow": True}
        clock.advance(2)
        assert [(await say(ann))["offset"] for _ in range(2)] == [1, 2]
        assert await server.metric("hook_breaker_open", endpoint="moderation") == 0
        assert (await outcomes(server))["open"] == 2


async def test_backend_that_answers_rubbish_is_left_alone_and_refused_data_concerns_one_event() -> None:
    for reply, is_open in ((lambda _: reply_text("<html>"), 1), ({"allow": True, "data": {"text": 1}}, 0)):
        async with scene() as (server, backend, ann):
            backend.reply = reply
            for _ in range(MAX_FAILURES):
                assert (await say(ann))["details"] == {"reason": "bad_reply"}
            assert await server.metric("hook_breaker_open", endpoint="moderation") == is_open
            backend.reply = {"allow": True}
            reply_ = await say(ann)
            assert reply_.get("details", {}).get("reason") == ("open" if is_open else None)


async def test_slow_answer_holds_up_only_its_own_client() -> None:
    async with scene(concurrency=2, timeout=5) as (server, backend, ann):
        answer = asyncio.Event()

        async def reply(request: web.Request) -> web.StreamResponse:
            await answer.wait()
            return web.json_response({"allow": True})

        backend.reply = reply
        async with server.client("ben") as ben, server.client("eve") as eve:
            for client in (ann, ben, eve):
                await client.send(type="chat.open", id="slow", channel=ROOM, data=1)
            await eventually(lambda: len(backend.requests) == 2)
            await ann.send(type="chat.plain", id="behind", channel=ROOM, data=1)
            async with server.client("dan") as dan:
                assert (await say(dan, "chat.plain"))["offset"] == 1
            assert await server.metric("hooks_waiting", endpoint="moderation") == 3
            answer.set()
            for client in (ann, ben, eve):
                await client.until("ack", id="slow")
            await ann.until("ack", id="behind")


async def test_one_tenant_does_not_wait_for_another() -> None:
    async with serving_backend() as backend:
        endpoint = backend.endpoint(tenants=["default", "other"], tenant_concurrency=1, timeout=0.5)
        async with serving(endpoint) as server, server.client() as ann, server.client("ben") as ben:

            async def reply(request: web.Request) -> web.StreamResponse:
                if json.loads(await request.read())["tenant"] == "default":
                    await asyncio.Event().wait()
                return web.json_response({"allow": True})

            backend.reply = reply
            for client in (ann, ben):
                await client.send(type="chat.message", id="m", channel=ROOM, data=HELLO)
                await client.send(type="chat.open", id="o", channel=ROOM, data=1)
            async with server.client("eve", tenant="other") as eve:
                assert (await say(eve, "chat.open", 1))["offset"] == 1
            for client in (ann, ben):
                await client.until("ack", id="o")
            assert (await outcomes(server)).keys() == {"timeout", "busy", "allowed"}


async def test_tenants_have_endpoints_of_their_own() -> None:
    async with serving_backend() as first, serving_backend() as second:
        endpoints = first.endpoint(), second.endpoint(tenants=["other"])
        async with serving(*endpoints) as server:
            for tenant, backend in (("default", first), ("other", second)):
                async with server.client(tenant=tenant) as client:
                    assert (await say(client, "chat.open", 1))["type"] == "ack"
                assert [question["tenant"] for question in backend.questions] == [tenant]
            async with server.client(tenant="third") as client:
                assert (await say(client, "chat.cursor", {"user": "x"}))["details"] == {"reason": "no_endpoint"}
            assert await outcomes(server) == {"allowed": 2, "no_endpoint": 1}


async def test_connection_that_the_backend_has_closed_is_opened_again() -> None:
    async with scene() as (server, backend, ann):
        assert (await say(ann))["offset"] == 1

        async def cut(request: web.Request) -> web.StreamResponse:
            backend.reply = {"allow": True}
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        backend.reply = cut
        assert (await say(ann))["offset"] == 2
        ids = [request.headers["webhook-id"] for request in backend.requests]
        assert ids[0] != ids[1] == ids[2]
        assert await outcomes(server) == {"allowed": 2}


async def test_secrets_in_a_file_change_while_the_service_runs(tmp_path: Path) -> None:
    clock, other = FakeClock(time.time()), "whsec_" + "b3RoZXIgc2VjcmV0IG9mIHRoZSBiYWNrZW5kIHRlc3Q="
    file = tmp_path / "secrets"
    file.write_text(f"{SECRET}\n")
    async with serving_backend() as backend:
        endpoint = {**backend.endpoint(), "secrets": [], "secrets_file": file}
        async with serving(endpoint, clock=clock) as server, server.client() as ann:
            assert (await say(ann, "chat.open", 1))["type"] == "ack"
            file.write_text(f"{other}\n{SECRET}\n")
            clock.advance(10)
            backend.secrets = [SECRET, other]
            assert (await say(ann, "chat.open", 1))["type"] == "ack"
            file.write_text("whsec_short\n")  # changes nothing
            clock.advance(10)
            assert (await say(ann, "chat.open", 1))["type"] == "ack"
            assert await outcomes(server) == {"allowed": 3}


async def test_endpoint_with_tls_is_asked_only_if_its_certificate_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ours, theirs = Certificates(tmp_path), Certificates(tmp_path / "other")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(ours.certificate, ours.key)
    async with serving_backend(tls=tls) as backend:
        for ca, outcome in ((ours.ca, "allowed"), (theirs.ca, "unreachable"), (None, "unreachable")):
            async with serving(backend.endpoint(ca=ca)) as server, server.client() as ann:
                reply = await say(ann, "chat.cursor", {"user": "ann"})
                assert reply["type"] == "ack" or reply["details"] == {"reason": outcome}
                assert await outcomes(server) == {outcome: 1}
        assert len(backend.questions) == 1


async def test_example_of_the_docs_works_as_the_page_shows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")
    contract, config = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[:2]
    [receiver] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "moderation"
    file.write_text(f"{SECRET}\n")
    (tmp_path / "contract.yaml").write_text(contract)
    example: dict[str, Any] = {"__name__": "example"}
    exec(receiver.replace("/etc/tidewire/hooks/moderation", str(file)), example)  # a page of our own
    runner = web.AppRunner(example["app"])
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/tidewire"
    endpoints = [{**one, "url": url, "secrets_file": file} for one in yaml.safe_load(config)["hooks"]["endpoints"]]
    try:
        async with (
            harness.serving(contract=tmp_path / "contract.yaml", hooks={"endpoints": endpoints}) as server,
            server.client() as ann,
        ):
            await ann.subscribe(ROOM)
            assert (await say(ann))["type"] == "ack"
            assert (await say(ann, data={"text": "http://x.test"}))["details"]["reason"] == "no links here"
            async with server.http.post(url, json={"hook": "publish"}) as response:
                assert response.status == 401, "not signed"
    finally:
        await runner.cleanup()
