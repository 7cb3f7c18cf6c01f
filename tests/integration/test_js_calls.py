"""Calls of the JavaScript client over WebSockets and streams: what they get, and what a lost connection does (docs/calls.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.backend import Backend, serving_backend
from tests.support.harness import eventually, serving
from tests.support.http_proxy import HttpProxy, Upgrades
from tests.support.js_client import CallFailedError, JsClient, js_client

CONTRACT = Path(__file__).parent / "calls.yaml"
TRANSPORTS: list[tuple[Upgrades, str]] = [("pass", "websocket"), ("refuse", "stream")]


@asynccontextmanager
async def scene(upgrades: Upgrades, transport: str) -> AsyncIterator[tuple[Backend, HttpProxy, JsClient]]:
    """A backend, and a connected client behind a proxy."""
    async with (
        serving_backend() as backend,
        serving(contract=CONTRACT, hooks={"endpoints": [backend.endpoint("shop")]}) as server,
    ):
        proxy = HttpProxy(int(server.url.rpartition(":")[2]))
        proxy.upgrades = upgrades
        try:
            async with js_client(f"ws://127.0.0.1:{await proxy.start()}/ws", backoffBase=50) as client:
                client.start("connect")
                await client.ready(transport)
                yield backend, proxy, client
        finally:
            await proxy.close()


@pytest.mark.alone
@pytest.mark.parametrize(("upgrades", "transport"), TRANSPORTS)
async def test_call_gets_the_reply_or_the_error_of_the_backend(upgrades: Upgrades, transport: str) -> None:
    async with scene(upgrades, transport) as (backend, _, client):
        backend.reply = {"data": {"price": 1250}}
        assert await client.call("ask", name="order.quote", data={"item": "tea"}, id="q-1") == {"price": 1250}
        [question] = backend.questions
        assert (question["id"], question["user"], question["data"]) == ("q-1", "ann", {"item": "tea"})
        assert question["connection"]

        backend.reply = {"error": {"reason": "sold_out", "message": "No tea left.", "data": {"left": 0}}}
        with pytest.raises(CallFailedError, match=r"No tea left\.") as failed:
            await client.call("ask", name="order.quote", data={"item": "tea"})
        assert (failed.value.code, failed.value.details) == ("call_failed", {"reason": "sold_out", "data": {"left": 0}})

        backend.reply = {"data": {"prize": 1}}
        with pytest.raises(CallFailedError) as failed:
            await client.call("ask", name="order.quote", data={"item": "tea"})
        assert (failed.value.code, failed.value.details["reason"]) == ("hook_unavailable", "bad_reply")

        for name, code in (("order.quote", "invalid_data"), ("order.qoute", "unknown_call")):
            with pytest.raises(CallFailedError) as failed:
                await client.call("ask", name=name, data={})
            assert failed.value.code == code
        assert len(backend.questions) == 3


@pytest.mark.alone
@pytest.mark.parametrize(("upgrades", "transport"), TRANSPORTS)
async def test_call_of_a_lost_connection_is_uncertain_or_repeated_with_its_id(
    upgrades: Upgrades, transport: str
) -> None:
    async with scene(upgrades, transport) as (backend, proxy, client):
        answer = asyncio.Event()

        async def reply(_: web.Request) -> web.StreamResponse:
            await answer.wait()
            return web.json_response({"data": "done"})

        backend.reply = reply
        once: Any = client.start("ask", name="order.place", data=1, id="once")
        again: Any = client.start("ask", name="order.place", data=2, id="again", retry=True)
        await eventually(lambda: len(backend.questions) == 2)
        proxy.reset()
        with pytest.raises(CallFailedError) as failed:
            await once
        assert failed.value.code == "uncertain"
        await eventually(lambda: len(backend.questions) == 3)
        answer.set()
        assert await again == "done"
        assert sorted(question["id"] for question in backend.questions) == ["again", "again", "once"]
