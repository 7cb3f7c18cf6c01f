"""Calls to the backend: over the real service, over a scripted one, and in the fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from python_client_script import WELCOME, Peer, Service
from tests.support.backend import Backend, serving_backend
from tests.support.harness import Running, serving, token

from tidewire import (
    AsyncTidewire,
    CallFailedError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RetryPolicy,
    Tidewire,
    TidewireError,
    UnavailableError,
)
from tidewire.testing import Called, FakeTidewire, call_failed

CONTRACT = Path(__file__).parents[3] / "tests" / "integration" / "calls.yaml"
TEA = {"item": "tea"}
QUICK = RetryPolicy(5, base=0.01)


@dataclass
class Order:
    """Data that an application has."""

    item: str


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[Running, Backend]]:
    async with (
        serving_backend() as backend,
        serving(contract=CONTRACT, hooks={"endpoints": [backend.endpoint("shop")]}) as server,
    ):
        backend.reply = {"data": {"price": 5}}
        yield server, backend


# --- the real service -------------------------------------------------------------------------------------------------


async def test_call_returns_the_data_of_the_backend() -> None:
    async with scene() as (server, backend), AsyncTidewire(server.url, token=token) as client:
        assert await client.call("order.quote", Order("tea"), id="q-1") == {"price": 5}
        [question] = backend.questions
        assert (question["id"], question["data"], question["user"]) == ("q-1", TEA, "ann")
        backend.reply = {"data": None}
        assert await client.call("order.place") is None


async def test_call_of_a_thread_returns_the_same() -> None:
    async with scene() as (server, backend):

        def work() -> list[Any]:
            with Tidewire(server.url, token=token) as client, ThreadPoolExecutor() as threads:
                return list(threads.map(lambda _: client.call("order.quote", TEA), range(3)))

        assert await asyncio.to_thread(work) == [{"price": 5}] * 3
        assert len({question["id"] for question in backend.questions}) == 3


async def test_each_refusal_has_its_class() -> None:
    async with scene() as (server, backend), AsyncTidewire(server.url, token=token) as client:
        error: TidewireError | None = None
        for name, data, reply, kind, code in (
            ("order.nothing", TEA, None, NotFoundError, "unknown_call"),
            ("order.quote", {}, None, InvalidRequestError, "invalid_data"),
            ("order.quote", TEA, {"allow": False}, ForbiddenError, "forbidden"),
            ("order.quote", TEA, {}, UnavailableError, "hook_unavailable"),
            ("order.quote", TEA, {"error": {"reason": "sold_out", "data": 7}}, CallFailedError, "call_failed"),
        ):
            backend.reply = reply
            with pytest.raises(TidewireError) as caught:
                await client.call(name, data, id="q")
            error = caught.value
            assert (type(error), error.code, error.event_id) == (kind, code, "q")
        assert isinstance(error, CallFailedError)
        assert (error.reason, error.data, error.retryable) == ("sold_out", 7, False)
        assert error.help


async def test_more_calls_than_the_service_allows_wait_for_their_turn() -> None:
    async with (
        serving_backend() as backend,
        serving(contract=CONTRACT, hooks={"endpoints": [backend.endpoint("shop")]}, limits={"calls": 2}) as server,
        AsyncTidewire(server.url, token=token) as client,
    ):
        backend.reply = {"data": {"price": 5}}
        assert await asyncio.gather(*(client.call("order.quote", TEA) for _ in range(9))) == [{"price": 5}] * 9
        assert await server.metric("limit_hits_total", limit="calls") == 0


# --- a scripted service -----------------------------------------------------------------------------------------------


async def begun(service: Service) -> Peer:
    """The next connection, which is open."""
    peer = await service.peer()
    await peer.welcome()
    return peer


async def test_call_is_sent_once_and_a_lost_connection_is_an_error() -> None:
    service = Service()
    async with service.client() as client:
        call = asyncio.create_task(client.call("order.quote", TEA, id="q-1"))
        peer = await begun(service)
        assert await peer.expect("call") == {"type": "call", "id": "q-1", "call": "order.quote", "data": TEA}
        peer.end(1006)
        with pytest.raises(ConnectionFailedError) as caught:
            await call
        assert (caught.value.event_id, caught.value.retryable) == ("q-1", True)


async def test_call_with_retry_is_sent_again_with_its_id() -> None:
    service = Service()
    async with service.client(retries=QUICK) as client:
        call = asyncio.create_task(client.call("order.quote", TEA, id="q-1", retry=True))
        peer = await begun(service)
        await peer.expect("call")
        peer.end(1006)
        peer = await begun(service)
        assert (await peer.expect("call"))["id"] == "q-1"
        peer.say({"type": "error", "id": "q-1", "code": "draining", "message": "m", "retryable": True, "details": {}})
        assert (await peer.expect("call"))["id"] == "q-1"
        peer.say({"type": "reply", "id": "q-1", "data": 7})
        assert await call == 7


async def test_call_that_waits_for_a_connection_is_sent_when_there_is_one() -> None:
    service = Service(ConnectionFailedError("no"), ConnectionFailedError("no"))
    async with service.client() as client:
        call = asyncio.create_task(client.call("order.quote", TEA, id="q-1"))
        peer = await begun(service)
        await peer.expect("call")
        peer.say({"type": "reply", "id": "q-1", "data": 7})
        assert await call == 7
        assert service.dialed == 3


async def test_replies_reach_their_calls_in_any_order() -> None:
    service = Service()
    async with service.client() as client:
        calls = [asyncio.create_task(client.call("order.quote", TEA, id=id_)) for id_ in ("a", "b")]
        peer = await begun(service)
        for _ in calls:
            await peer.expect("call")
        peer.say({"type": "reply", "id": "b", "data": "B"}, {"type": "reply", "id": "a", "data": "A"})
        assert await asyncio.gather(*calls) == ["A", "B"]


async def test_call_ends_at_its_deadline_and_a_late_reply_is_ignored() -> None:
    service = Service()
    async with service.client() as client:
        call = asyncio.create_task(client.call("order.quote", TEA, id="a", deadline=0.1))
        peer = await begun(service)
        await peer.expect("call")
        with pytest.raises(DeadlineExceededError):
            await call
        peer.say({"type": "reply", "id": "a", "data": "late"})
        call = asyncio.create_task(client.call("order.quote", TEA, id="b"))
        await peer.expect("call")
        peer.say({"type": "reply", "id": "b", "data": "B"})
        assert await call == "B"


async def test_older_service_gets_no_call() -> None:
    service = Service()
    async with service.client() as client:
        call = asyncio.create_task(client.call("order.quote", TEA))
        peer = await service.peer()
        await peer.welcome(features=[name for name in WELCOME["features"] if name != "calls"])
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.code == "no_calls"


async def test_data_that_is_no_json_is_refused_before_it_is_sent() -> None:
    service = Service()
    async with service.client() as client:
        with pytest.raises(ConfigurationError):
            await client.call("order.quote", {"item": object()})
        assert service.dialed == 0


# --- the fake ---------------------------------------------------------------------------------------------------------


async def test_fake_answers_calls_and_records_them() -> None:
    fake = FakeTidewire()
    answer = asyncio.Event()

    async def slow(data: Any) -> Any:
        await answer.wait()
        return data

    fake.on_call("order.quote", lambda data: {"price": len(data["item"])})
    fake.on_call("order.slow", slow)
    async with fake.async_client() as client:
        waiting = asyncio.create_task(client.call("order.slow", 1, id="slow"))
        assert await client.call("order.quote", TEA, id="q") == {"price": 3}
        answer.set()
        assert await waiting == 1
    assert Called("order.quote", "q", TEA) in fake.calls


def test_fake_fails_calls_as_a_backend_does() -> None:
    fake = FakeTidewire()

    def sold_out(data: Any) -> Any:
        raise call_failed("sold_out", data={"left": 0})

    fake.on_call("order.quote", sold_out)
    fake.on_call("order.broken", lambda data: data["missing"])
    with fake.client(retries=QUICK) as client:
        with pytest.raises(CallFailedError) as failed:
            client.call("order.quote", TEA)
        assert (failed.value.reason, failed.value.data) == ("sold_out", {"left": 0})
        with pytest.raises(UnavailableError):
            client.call("order.broken", TEA)
        with pytest.raises(NotFoundError):
            client.call("order.nothing")
        fake.on_call("order.quote", lambda data: 5)
        fake.lose_replies()
        with pytest.raises(ConnectionFailedError):
            client.call("order.quote", TEA)
        fake.lose_replies()
        fake.refuse("rate_limited", retry_after=0.01)
        assert client.call("order.quote", TEA, retry=True) == 5
