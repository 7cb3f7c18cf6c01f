"""Calls of clients to the backend: what it is asked, what its answers do, their order, their bounds and their end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.adapters.http_hooks.breaker import MAX_FAILURES
from tests.support import harness
from tests.support.backend import BOMB, Backend, endless, hang, reply_text, serving_backend
from tests.support.clock import FakeClock
from tests.support.exported import exported
from tests.support.harness import API_KEY, Client, Running, eventually, token
from tests.support.streams import authorization, stream
from tests.support.wire import connect

CONTRACT = Path(__file__).parent / "calls.yaml"
TEA = {"item": "tea"}


class Shop:
    """Answers each call when the test says so, by its id."""

    def __init__(self, backend: Backend) -> None:
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.cut: list[str] = []
        """The calls whose requests the service has ended."""
        backend.reply = self._reply

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        id_ = json.loads(await request.read())["id"]
        self.waiting[id_] = asyncio.get_running_loop().create_future()
        try:
            return web.json_response(await self.waiting[id_])
        except asyncio.CancelledError:
            self.cut.append(id_)
            raise

    async def has(self, *ids: str) -> None:
        """Waits until these calls have arrived."""
        await eventually(lambda: self.waiting.keys() >= set(ids), lambda: self.waiting)

    def answer(self, id_: str, price: int) -> None:
        self.waiting[id_].set_result({"data": {"price": price}})


@asynccontextmanager
async def serving(*endpoints: dict[str, Any], **groups: Any) -> AsyncIterator[Running]:
    async with harness.serving(contract=CONTRACT, hooks={"endpoints": endpoints}, **groups) as server:
        yield server
        await server.at_rest()
        assert await server.metric("calls_under_way") == 0


@asynccontextmanager
async def scene(
    *, limits: dict[str, Any] | None = None, **endpoint: Any
) -> AsyncIterator[tuple[Running, Backend, Client]]:
    """A backend, a service that asks it, and a client."""
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("shop", **endpoint), limits=limits or {}) as server,
        server.client() as ann,
    ):
        backend.reply = {"data": {"price": 5}}
        yield server, backend, ann


async def quote(client: Client, data: Any = TEA, call: str = "order.quote", **more: Any) -> dict[str, Any]:
    return await client.ask("call", call=call, data=data, **more)


async def start(client: Client, id_: str, call: str = "order.quote") -> None:
    await client.send(type="call", call=call, id=id_, data=TEA)


async def counted(server: Running, name: str = "calls") -> dict[str, float]:
    """The outcomes that are not zero: of all calls, or of all questions."""
    found: dict[str, float] = {}
    for sample, value in (await server.metrics()).items():
        if sample.startswith(f"tidewire_{name}_total{{") and value:
            outcome = sample.partition('outcome="')[2].partition('"')[0]
            found[outcome] = found.get(outcome, 0) + value
    return found


# --- questions and answers --------------------------------------------------------------------------------------------


async def test_backend_is_asked_and_the_client_gets_its_data() -> None:
    async with scene() as (server, backend, ann):
        assert await quote(ann) == {"type": "reply", "id": "q1", "data": {"price": 5}}
        assert backend.questions == [
            {
                "hook": "call",
                "tenant": "default",
                "user": "ann",
                "sender": "ann",
                "connection": ann.welcome["connection"],
                "id": "q1",
                "call": "order.quote",
                "data": TEA,
            }
        ]
        (request,) = backend.requests
        assert not {"Cookie", "Authorization"} & set(request.headers)
        assert (await counted(server), await counted(server, "hooks")) == ({"replied": 1}, {"allowed": 1})
        assert "calls" in ann.welcome["features"]
        assert ann.welcome["limits"]["calls"] == 16


@pytest.mark.parametrize("data", [None, 0, "", [], {"deep": [{"a": "ü€😀"}]}])
async def test_any_json_passes_a_call_without_schemas(data: Any) -> None:
    async with scene() as (_, backend, ann):
        backend.reply = {"data": data}
        assert (await quote(ann, data, "order.place"))["data"] == data
        assert backend.questions[0]["data"] == data


async def test_error_of_the_application_reaches_the_client() -> None:
    async with scene() as (server, backend, ann):
        backend.reply = {"error": {"reason": "sold_out", "message": "x" * 300, "data": {"left": 0}}, "more": 1}
        error = await quote(ann)
        assert error == {
            "type": "error",
            "code": "call_failed",
            "message": "x" * 256,
            "retryable": False,
            "details": {"reason": "sold_out", "data": {"left": 0}},
            "id": "q1",
        }
        backend.reply = {"error": {"reason": "sold_out"}}
        error = await quote(ann)
        assert (error["message"], error["details"]) == (
            "the backend answers order.quote with an error",
            {"reason": "sold_out"},
        )
        backend.reply = {"error": {"reason": "sold_out", "data": None}}
        assert (await quote(ann))["details"] == {"reason": "sold_out", "data": None}
        backend.reply = {"allow": False, "reason": "banned"}
        error = await quote(ann)
        assert (error["code"], error["details"]) == ("forbidden", {"path": "$.call", "reason": "banned"})
        assert (await counted(server), await counted(server, "hooks")) == (
            {"failed": 3, "denied": 1},
            {"allowed": 3, "denied": 1},
        )


async def test_what_the_gate_refuses_is_not_asked() -> None:
    async with scene() as (server, backend, ann):
        for data, call, code, path in (
            ({"item": 1}, "order.quote", "invalid_data", "$.data.item"),
            ({}, "order.quote", "invalid_data", "$.data"),
            (TEA, "order.nothing", "unknown_call", "$.call"),
        ):
            error = await quote(ann, data, call)
            assert (error["code"], error["details"]["path"], error["retryable"]) == (code, path, False)
        await ann.raw('{"type":"call","call":"order.place","id":"d","data":{"a":1,"a":2}}')
        assert (await ann.until("error", id="d"))["code"] == "malformed"
        assert backend.questions == []
        assert await counted(server) == {"refused": 3}


async def test_anonymous_clients_make_only_calls_for_everyone() -> None:
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("shop"), auth={"anonymous": True}) as server,
        server.client(hello=False) as nobody,
    ):
        await nobody.send(type="hello")
        backend.reply = {"data": {"price": 5}}
        connection = (await nobody.until("welcome"))["connection"]
        assert (await quote(nobody, call="order.place"))["code"] == "forbidden"
        assert (await quote(nobody))["data"] == {"price": 5}
        [question] = backend.questions
        assert (question["user"], question["sender"]) == ("", f"anonymous-{connection}")


LIES = {
    "not json": (lambda _: reply_text("<html>"), "bad_reply"),
    "not utf-8": (lambda _: reply_text(b'{"data": {"price": 1, "note": "\xff"}}'), "bad_reply"),
    "not utf-8 in an error": (lambda _: reply_text(b'{"error": {"reason": "x", "data": "\xff"}}'), "bad_reply"),
    "empty": (lambda _: reply_text(""), "bad_reply"),
    "nothing": ({}, "bad_reply"),
    "two answers": ({"data": {"price": 1}, "error": {"reason": "x"}}, "bad_reply"),
    "refused with data": ({"allow": False, "data": {"price": 1}}, "bad_reply"),
    "error without a reason": ({"error": {"message": "x"}}, "bad_reply"),
    "error with an empty reason": ({"error": {"reason": ""}}, "bad_reply"),
    "error with a long reason": ({"error": {"reason": "x" * 65}}, "bad_reply"),
    "error with much data": ({"error": {"reason": "x", "data": "x" * 4_096}}, "bad_reply"),
    "another schema": ({"data": {"price": "5"}}, "bad_reply"),
    "repeated key": (lambda _: reply_text('{"data": {"price": 1, "price": 2}}'), "bad_reply"),
    "nested": (lambda _: reply_text('{"data": {"price": 1, "x": ' + "[" * 200 + "]" * 200 + "}}"), "bad_reply"),
    "too large": ({"data": {"price": 1, "note": "x" * 65_536}}, "bad_reply"),
    "gzip": (lambda _: reply_text(BOMB, headers={"Content-Encoding": "gzip"}), "bad_reply"),
    "endless": (endless, "bad_reply"),
    "redirect": (lambda _: reply_text("", status=307, headers={"Location": "/hooks"}), "status"),
    "no content": (lambda _: reply_text("", status=204), "status"),
    "fault": (lambda _: reply_text('{"data": {"price": 1}}', status=500), "status"),
}


@pytest.mark.parametrize("name", LIES)
async def test_reply_that_is_no_answer_never_reaches_the_client(name: str) -> None:
    reply, reason = LIES[name]
    async with scene() as (server, backend, ann):
        backend.reply = reply
        error = await quote(ann)
        assert (error["code"], error["retryable"]) == ("hook_unavailable", True)
        assert error["details"] == {"reason": reason}
        assert len(backend.requests) == 1  # a redirect is not followed
        assert (await counted(server), await counted(server, "hooks")) == ({"unanswered": 1}, {reason: 1})
        backend.reply = {"data": {"price": 5}}
        assert (await quote(ann))["data"] == {"price": 5}


async def test_reply_as_large_as_a_message_arrives_whole() -> None:
    async with scene() as (_, backend, ann):
        note = "x" * (65_536 - len('{"price":1,"note":""}'))
        backend.reply = lambda _: reply_text(f'{{"data":{{"price":1,"note":"{note}"}}}}')
        assert (await quote(ann))["data"]["note"] == note


async def test_data_that_a_client_sends_does_not_choose_whom_to_ask() -> None:
    async with serving_backend() as target, scene() as (_, backend, ann):
        for text in (target.url, "//" + target.url, "../../hooks"):
            assert (await quote(ann, {"url": text, "endpoint": text}, "order.place"))["type"] == "reply"
        assert (target.questions, len(backend.questions)) == ([], 3)


# --- time and order ---------------------------------------------------------------------------------------------------


async def test_replies_come_in_the_order_of_the_answers() -> None:
    async with scene() as (server, backend, ann):
        shop = Shop(backend)
        await ann.subscribe("room:1")
        for id_ in ("a", "b", "c"):
            await start(ann, id_)
        await shop.has("a", "b", "c")
        assert await server.metric("calls_under_way") == 3
        for id_ in ("c", "a", "b"):
            shop.answer(id_, 1)
            assert (await ann.expect("reply"))["id"] == id_


async def test_messages_after_a_call_do_not_wait_for_it() -> None:
    async with scene() as (_, backend, ann):
        shop = Shop(backend)
        await ann.send(type="subscribe", id="s", channel="room:1")
        await ann.raw(
            json.dumps(
                [
                    {"type": "call", "call": "order.quote", "id": "slow", "data": TEA},
                    {"type": "chat.message", "id": "m", "channel": "room:1", "data": {}},
                ]
            )
        )
        assert (await ann.until("ack", id="m"))["offset"] == 1
        await ann.silence(but="chat.message")
        await shop.has("slow")
        shop.answer("slow", 1)
        await ann.until("reply", id="slow")


async def test_timeout_of_the_contract_counts_instead_of_that_of_the_endpoint() -> None:
    async with scene(timeout=0.1) as (_, backend, ann):
        shop = Shop(backend)
        await start(ann, "long")  # 10 s
        await start(ann, "endpoint", "order.place")  # 0.1 s
        assert (await ann.until("error"))["id"] == "endpoint"
        shop.answer("long", 1)
        await ann.until("reply", id="long")
    async with scene(timeout=5) as (_, backend, ann):
        backend.reply = hang
        began = time.monotonic()
        error = await quote(ann, call="order.quick")  # 0.2 s
        assert (error["code"], error["details"]) == ("hook_unavailable", {"reason": "timeout"})
        assert time.monotonic() - began < 4


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_calls_of_a_connection_are_bounded_and_others_are_not_concerned() -> None:
    async with scene(limits={"calls": 2}) as (server, backend, ann), server.client("ben") as ben:
        shop = Shop(backend)
        for id_ in ("a", "b", "c"):
            await start(ann, id_)
        error = await ann.until("error", id="c")
        assert (error["code"], error["retryable"], error["details"]) == ("too_many_calls", True, {"limit": 2})
        await shop.has("a", "b")
        await start(ben, "d")
        await shop.has("d")
        shop.answer("a", 1)
        await ann.until("reply", id="a")
        await start(ann, "c")
        await shop.has("c")
        assert await server.metric("limit_hits_total", limit="calls") == 1
        for id_, client in (("b", ann), ("c", ann), ("d", ben)):
            shop.answer(id_, 1)
            await client.until("reply", id=id_)
        assert await counted(server) == {"replied": 4, "refused": 1}


async def test_second_call_with_an_id_under_way_is_refused_and_the_first_goes_on() -> None:
    async with scene() as (_, backend, ann):
        shop = Shop(backend)
        await start(ann, "a")
        await start(ann, "a")
        error = await ann.until("error", id="a")
        assert (error["code"], error["details"]["path"]) == ("invalid_message", "$.id")
        await shop.has("a")
        shop.answer("a", 1)
        await ann.until("reply", id="a")
        await start(ann, "a")  # free again
        await eventually(lambda: not shop.waiting["a"].done())
        shop.answer("a", 2)
        assert (await ann.until("reply", id="a"))["data"] == {"price": 2}


async def test_calls_count_as_messages() -> None:
    rate = {"per_second": 0.001, "burst": 3}
    async with scene(limits={"connection_rate": rate}) as (_, backend, ann):
        codes = [(await quote(ann)).get("code", "reply") for _ in range(4)]
        assert codes == ["reply", "reply", "reply", "rate_limited"]
        assert len(backend.questions) == 3


async def test_calls_beyond_the_endpoint_s_concurrency_wait_and_end_as_busy() -> None:
    async with scene(concurrency=1) as (server, backend, ann):
        shop = Shop(backend)
        await start(ann, "first")
        await shop.has("first")
        error = await quote(ann, call="order.quick")
        assert error["details"] == {"reason": "busy"}
        shop.answer("first", 1)
        await ann.until("reply", id="first")
        assert await counted(server, "hooks") == {"busy": 1, "allowed": 1}


async def test_endpoint_that_fails_again_and_again_is_left_alone() -> None:
    clock = FakeClock(time.time())
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("shop"), clock=clock) as server,
        server.client() as ann,
    ):
        backend.reply = lambda _: reply_text("<html>")
        for _ in range(MAX_FAILURES):
            assert (await quote(ann))["details"] == {"reason": "bad_reply"}
        assert (await quote(ann))["details"] == {"reason": "open"}
        assert len(backend.questions) == MAX_FAILURES
        clock.advance(1)
        backend.reply = {"data": {"price": 5}}
        assert (await quote(ann))["type"] == "reply"


async def test_replies_that_break_the_schema_leave_the_endpoint_to_others() -> None:
    async with scene() as (server, backend, ann):
        backend.reply = {"data": {"price": "5"}}
        for _ in range(MAX_FAILURES + 1):
            assert (await quote(ann))["details"] == {"reason": "bad_reply"}
        assert await server.metric("hook_breaker_open", endpoint="shop") == 0


async def test_bytes_of_calls_are_counted_while_they_are_under_way() -> None:
    async with scene() as (server, backend, ann):
        shop = Shop(backend)
        await ann.send(type="call", call="order.quote", id="a", data={"item": "tea", "note": "x" * 60_000})
        await shop.has("a")
        assert server.service.node.streams.budget.used >= 60_000
        shop.answer("a", 1)
        await ann.until("reply", id="a")
        await eventually(lambda: server.service.node.streams.budget.used == 0)


async def test_calls_beyond_the_byte_budget_are_refused() -> None:
    note = {"item": "tea", "note": "x" * 60_000}
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("shop"), outbox={"node_bytes": 100_000}) as server,
        server.client() as ann,
    ):
        shop = Shop(backend)
        await ann.send(type="call", call="order.quote", id="a", data=note)
        await shop.has("a")
        await ann.send(type="call", call="order.quote", id="b", data=note)
        error = await ann.until("error", id="b")
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        shop.answer("a", 1)
        await ann.until("reply", id="a")


async def test_replies_for_a_client_that_does_not_read_are_held_within_bounds_and_none_is_lost() -> None:
    calls, note = 8, "x" * 60_000
    groups = {"limits": {"calls": calls}, "outbox": {"send_buffer": 4_096, "bytes": 65_536, "stall": 60}}
    async with serving_backend() as backend, serving(backend.endpoint("shop"), **groups) as server:
        backend.reply = {"data": {"price": 5, "note": note}}
        came: list[str] = []

        def take(frame: bytes) -> None:
            content = json.loads(frame)
            came.extend(
                one["id"] for one in (content if isinstance(content, list) else [content]) if one["type"] == "reply"
            )

        port = int(server.url.rpartition(":")[2])
        wire = await connect(port, take, lambda _: None, bearer=token(), receive_buffer=4_096)
        wire.read(on=False)
        for number in range(calls):
            wire.text(json.dumps({"type": "call", "call": "order.quote", "id": f"c{number}", "data": TEA}))
        await eventually(lambda: len(backend.questions) == calls)
        node = server.service.node
        await eventually(lambda: node.streams.budget.used > 3 * len(note), lambda: node.streams.budget.used)
        assert node.streams.budget.used < (calls + 1) * 66_000
        assert exported(server.service.metrics, "calls_under_way") > 0
        wire.read(on=True)
        await eventually(lambda: len(came) == calls, lambda: came)
        assert sorted(came) == [f"c{number}" for number in range(calls)]
        wire.abort()


# --- the end of calls -------------------------------------------------------------------------------------------------


async def test_calls_end_with_their_connection_and_the_backend_sees_it() -> None:
    async with scene() as (server, backend, ann), server.client("ben") as ben:
        shop = Shop(backend)
        await start(ann, "a")
        await start(ann, "b")
        await start(ben, "c")
        await shop.has("a", "b", "c")
        await ann.close()
        await eventually(lambda: sorted(shop.cut) == ["a", "b"], lambda: shop.cut)
        shop.answer("c", 1)
        await ben.until("reply", id="c")
        assert await counted(server) == {"ended": 2, "replied": 1}
        assert await counted(server, "hooks") == {"cancelled": 2, "allowed": 1}
        assert await server.metric("hook_breaker_open", endpoint="shop") == 0


async def test_calls_of_a_client_that_is_cut_off_end() -> None:
    async with scene() as (server, backend, _):
        shop = Shop(backend)
        port = int(server.url.rpartition(":")[2])
        wire = await connect(port, lambda _: None, lambda _: None, bearer=token())
        wire.text(json.dumps({"type": "call", "call": "order.quote", "id": "a", "data": TEA}))
        await shop.has("a")
        wire.abort()
        await eventually(lambda: shop.cut == ["a"])


async def test_calls_of_a_revoked_user_end() -> None:
    async with scene() as (server, backend, ann):
        shop = Shop(backend)
        await start(ann, "a")
        await shop.has("a")
        async with server.http.post(
            f"{server.url}/api/v1/users/ann/revoke", json={}, headers={"Authorization": f"Bearer {API_KEY}"}
        ) as response:
            assert response.status == 200, await response.text()
        assert await ann.closed() == 4401
        await eventually(lambda: shop.cut == ["a"])
        assert [message["type"] for message in ann.received] == []


async def test_node_that_shuts_down_tells_clients_to_call_again() -> None:
    async with serving_backend() as backend:
        shop = Shop(backend)
        async with harness.serving(contract=CONTRACT, hooks={"endpoints": [backend.endpoint("shop")]}) as server:
            async with server.client() as ann:
                await start(ann, "a")
                await shop.has("a")
                drain = asyncio.create_task(server.service.node.lifecycle.drain())
                error = await ann.until("error", id="a")
                assert (error["code"], error["retryable"]) == ("draining", True)
                assert error["details"]["retry_after"] > 0
                assert await ann.closed() == 1012
            await drain
            await eventually(lambda: shop.cut == ["a"])
            assert await server.metric("drain_timeouts_total") == 0


# --- without a WebSocket ----------------------------------------------------------------------------------------------


async def post(server: Running, user: str | None = "ann", **body: Any) -> tuple[int, dict[str, Any]]:
    """Makes a call over HTTP: status and body."""
    body = {"call": "order.quote", "id": "h", "data": TEA, **body}
    async with server.http.post(
        f"{server.url}/call", json=body, headers={} if user is None else authorization(user)
    ) as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json(content_type=None)


async def test_call_over_http_gets_the_same_reply_and_the_same_errors() -> None:
    async with scene() as (server, backend, _):
        assert await post(server) == (200, {"type": "reply", "id": "h", "data": {"price": 5}})
        [question] = backend.questions
        assert (question["user"], question["sender"], "connection" in question) == ("ann", "ann", False)
        for reply, status, code, details in (
            ({"error": {"reason": "sold_out", "data": 1}}, 422, "call_failed", {"reason": "sold_out", "data": 1}),
            ({"allow": False}, 403, "forbidden", {"path": "$.call"}),
            ({"data": {"price": ""}}, 503, "hook_unavailable", {"reason": "bad_reply"}),
        ):
            backend.reply = reply
            found, problem = await post(server)
            assert (found, problem["code"], problem["details"]) == (status, code, details)
        asked = len(backend.questions)
        for body, status, code in (
            ({"call": "order.nothing"}, 404, "unknown_call"),
            ({"data": {}}, 422, "invalid_data"),
            ({"id": ""}, 400, "invalid_message"),
            ({"channel": "room:1"}, 400, "invalid_message"),
            ({"receipt": "forged"}, 403, "invalid_receipt"),
            ({"data": {"item": "tea", "note": "x" * 65_536}}, 413, "too_big"),
        ):
            found, problem = await post(server, **body)
            assert (found, problem["code"]) == (status, code), problem
        assert len(backend.questions) == asked


async def test_call_over_http_belongs_to_the_session_of_its_receipt() -> None:
    async with scene() as (server, backend, _):
        for user in ("ann", "ben"):
            async with stream(server, "room:1", headers=authorization(user)) as events:
                status, reply = await post(server, user, receipt=events.receipt)
                assert (status, reply["type"]) == (200, "reply")
                assert backend.questions[-1]["connection"] == events.welcome["connection"]
                assert (await post(server, "eve", receipt=events.receipt))[0] == 403


async def test_anonymous_call_over_http_needs_a_receipt() -> None:
    async with serving_backend() as backend, serving(backend.endpoint("shop"), auth={"anonymous": True}) as server:
        backend.reply = {"data": {"price": 5}}
        status, problem = await post(server, None)
        assert (status, problem["code"], problem["details"]) == (403, "invalid_receipt", {"path": "$.receipt"})
        async with stream(server, "room:1", headers={}) as events:
            assert (await post(server, None, receipt=events.receipt))[0] == 200
            [question] = backend.questions
            assert question["sender"] == f"anonymous-{events.welcome['connection']}"


async def test_call_over_http_ends_when_its_client_leaves() -> None:
    async with scene() as (server, backend, _):
        shop = Shop(backend)
        request = asyncio.create_task(post(server, id="a"))
        await shop.has("a")
        request.cancel()
        await eventually(lambda: shop.cut == ["a"])
        assert await counted(server) == {"ended": 1}


async def test_call_over_http_of_a_user_who_is_revoked_meanwhile_gets_no_reply() -> None:
    async with scene() as (server, backend, _):
        shop = Shop(backend)
        request = asyncio.create_task(post(server, id="a"))
        await shop.has("a")
        async with server.http.post(
            f"{server.url}/api/v1/users/ann/revoke", json={}, headers={"Authorization": f"Bearer {API_KEY}"}
        ) as response:
            assert response.status == 200, await response.text()
        shop.answer("a", 1)
        status, problem = await request
        assert (status, problem["code"]) == (401, "invalid_token")


async def test_call_over_http_of_a_session_that_ends_meanwhile_gets_no_reply() -> None:
    async with scene() as (server, backend, _):
        shop = Shop(backend)
        async with stream(server, "room:1", user="ben") as events:
            request = asyncio.create_task(post(server, "ben", id="a", receipt=events.receipt))
            await shop.has("a")
            async with server.http.post(
                f"{server.url}/api/v1/users/ben/disconnect", json={}, headers={"Authorization": f"Bearer {API_KEY}"}
            ) as response:
                assert response.status == 200, await response.text()
            await events.closed()
            shop.answer("a", 1)
            status, problem = await request
            assert (status, problem["code"]) == (403, "invalid_receipt")


async def test_connection_that_is_asked_to_move_refuses_its_calls_first() -> None:
    async with scene() as (server, backend, ann):
        shop = Shop(backend)
        await start(ann, "a")
        await shop.has("a")
        node = server.service.node
        node.lifecycle.reconnects.schedule(node.streams.registry, over=0.0, reason="age")
        assert (await ann.until("error", id="a"))["code"] == "draining"
        assert await ann.closed() == 1012
        await eventually(lambda: shop.cut == ["a"])


async def test_calls_over_http_of_one_user_are_bounded_together() -> None:
    async with scene(limits={"calls": 2}) as (server, backend, ann):
        shop = Shop(backend)
        requests = [asyncio.create_task(post(server, id=id_)) for id_ in ("a", "b")]
        await shop.has("a", "b")
        status, problem = await post(server, id="c")
        assert (status, problem["code"], problem["retryable"]) == (429, "too_many_calls", True)
        others = asyncio.create_task(post(server, "ben", id="d"))
        await start(ann, "e")
        await shop.has("d", "e")
        for id_ in ("a", "b", "d", "e"):
            shop.answer(id_, 1)
        assert [status for status, _ in await asyncio.gather(*requests, others)] == [200] * 3
        await ann.until("reply", id="e")


async def test_node_that_shuts_down_waits_for_calls_over_http_and_then_refuses_them() -> None:
    async with serving_backend() as backend:
        shop = Shop(backend)
        hooks = {"endpoints": [backend.endpoint("shop")]}
        async with harness.serving(contract=CONTRACT, hooks=hooks, deadlines={"shutdown": 0.5}) as server:
            first, second = (asyncio.create_task(post(server, id=id_)) for id_ in ("a", "b"))
            await shop.has("a", "b")
            drain = asyncio.create_task(server.service.node.lifecycle.drain())
            shop.answer("a", 1)
            assert (await first)[0] == 200
            status, problem = await second
            assert (status, problem["code"], problem["retryable"]) == (503, "draining", True)
            await drain
            assert (await post(server))[1]["code"] == "draining"
            assert await server.metric("drain_timeouts_total") == 0
