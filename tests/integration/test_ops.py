"""The ops listener: alive, ready, measured."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp import AiohttpClient

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.errors import ErrorCode, ServiceError
from service.realtime.lifecycle.broker_health import INTERVAL
from service.web.ops.routes import build_ops
from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE, Running, eventually, serving


class Sick(MemoryBroker):
    """A broker whose check answers as told."""

    def __init__(self) -> None:
        super().__init__(
            SystemClock(), idempotency_window=300, idempotency_entries=1000, channels=100, max_bytes=1_000_000
        )
        self.fault: Exception | None = None
        self.hangs = False
        self.let_go = asyncio.Event()
        """Set when a hanging check was given up."""

    async def check(self) -> None:
        if self.fault is not None:
            raise self.fault
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.let_go.set()
        await super().check()


async def probe(server: Running, path: str) -> tuple[int, dict[str, Any]]:
    async with server.http.get(f"{server.ops_url}{path}") as response:
        return response.status, await response.json(content_type=None)


async def test_a_running_service_is_alive_and_ready(server: Running) -> None:
    assert await probe(server, "/healthz") == (200, {"status": "ok"})
    assert await probe(server, "/readyz") == (200, {"status": "ready"})
    metrics = await server.metrics()
    assert (metrics["tidewire_ready"], metrics["tidewire_broker_up"]) == (1, 1)


async def test_without_its_broker_a_node_is_alive_and_not_ready() -> None:
    broker = Sick()
    async with serving(broker=broker, broker_settings={"unready_after": 0}) as server:
        assert (await probe(server, "/readyz"))[0] == 200
        broker.fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "no answer on port 6379")
        assert await probe(server, "/healthz") == (200, {"status": "ok"})
        assert await probe(server, "/readyz") == (
            503,
            {
                "status": "not ready",
                "reasons": [{"code": "broker_unavailable", "message": "no answer on port 6379"}],
            },
        )
        metrics = await server.metrics()
        assert (metrics["tidewire_ready"], metrics["tidewire_broker_up"]) == (0, 0)
        broker.fault = None
        assert (await probe(server, "/readyz"))[0] == 200
        metrics = await server.metrics()
        assert (metrics["tidewire_ready"], metrics["tidewire_broker_up"]) == (1, 1)


async def test_a_node_whose_broker_blinks_stays_ready_and_says_so() -> None:
    broker, clock = Sick(), FakeClock()
    async with serving(broker=broker, clock=clock, broker_settings={"unready_after": 30}) as server:
        broker.fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "no answer on port 6379")
        reason = {"code": "broker_unavailable", "message": "no answer on port 6379"}
        assert await probe(server, "/readyz") == (200, {"status": "ready", "degraded": [reason]})
        assert (await server.metrics())["tidewire_broker_up"] == 0
        clock.advance(29)
        assert (await probe(server, "/readyz"))[0] == 200
        clock.advance(1)
        assert await probe(server, "/readyz") == (503, {"status": "not ready", "reasons": [reason]})
        broker.fault = None
        assert await probe(server, "/readyz") == (200, {"status": "ready"})
        broker.fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "no answer on port 6379")
        assert (await probe(server, "/readyz"))[0] == 200, "it counts from when it went this time"


async def test_how_long_the_broker_has_been_away_is_known_without_anybody_asking() -> None:
    broker, clock = Sick(), FakeClock()
    async with serving(broker=broker, clock=clock, broker_settings={"unready_after": 30}) as server:
        clock.advance(INTERVAL)
        await eventually(lambda: server.service.metrics.broker.broker_up._value.get() == 1)
        broker.fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "no answer on port 6379")
        clock.advance(INTERVAL)
        await eventually(lambda: server.service.metrics.broker.broker_up._value.get() == 0)
        clock.advance(30)
        assert (await probe(server, "/readyz"))[0] == 503


async def test_a_broker_that_hangs_does_not_hang_the_probes() -> None:
    broker = Sick()
    async with serving(broker=broker, broker_settings={"unready_after": 0}) as server:
        broker.hangs = True
        async with asyncio.timeout(DEADLINE):
            asked = asyncio.ensure_future(probe(server, "/readyz"))
            assert await probe(server, "/healthz") == (200, {"status": "ok"})
            status, body = await asked
        assert (status, body["reasons"][0]["code"]) == (503, "broker_unavailable")
        assert broker.let_go.is_set()


async def test_a_draining_node_is_not_ready_and_still_knows_of_its_broker() -> None:
    broker = Sick()
    async with serving(broker=broker, broker_settings={"unready_after": 0}) as server:
        server.service.node.admission.set_draining(draining=True)
        status, body = await probe(server, "/readyz")
        assert (status, [reason["code"] for reason in body["reasons"]]) == (503, ["draining"])
        metrics = await server.metrics()
        assert (metrics["tidewire_ready"], metrics["tidewire_broker_up"]) == (0, 1)
        broker.fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "gone")
        body = (await probe(server, "/readyz"))[1]
        assert [reason["code"] for reason in body["reasons"]] == ["draining", "broker_unavailable"]
        assert (await server.metrics())["tidewire_broker_up"] == 0


async def test_a_node_whose_task_has_died_is_not_ready(server: Running) -> None:
    async def dies() -> None:
        raise RuntimeError("a fault for the test")

    node = server.service.node
    task = node.runtime.tasks.spawn("feeding the fish", dies(), critical=True)
    await asyncio.wait([task])
    status, body = await probe(server, "/readyz")
    assert (status, body["reasons"][0]["message"]) == (503, "the task 'feeding the fish' has died")
    assert (await probe(server, "/healthz"))[0] == 200


async def test_a_faulty_check_is_a_500_and_not_ready() -> None:
    broker = Sick()
    async with serving(broker=broker, broker_settings={"unready_after": 0}) as server:
        assert (await probe(server, "/readyz"))[0] == 200
        broker.fault = RuntimeError("a fault for the test")
        status, body = await probe(server, "/readyz")
        assert (status, body["code"]) == (500, "internal")
        assert (await server.metrics())["tidewire_ready"] == 0


async def test_a_node_that_does_not_listen_yet_is_not_ready(server: Running, aiohttp_client: AiohttpClient) -> None:
    listening, node = False, server.service.node
    client = await aiohttp_client(build_ops(node, server.service.metrics, lambda: listening, server.service.scrapes))
    async with client.get("/readyz") as response:
        assert response.status == 503
        assert (await response.json())["reasons"][0]["message"] == "the public listener is not open"
        assert (await server.metrics())["tidewire_ready"] == 0
    listening = True
    assert (await server.metrics())["tidewire_ready"] == 1, "whether or not somebody asks /readyz"
    async with client.get("/readyz") as response:
        assert response.status == 200


async def test_metrics_are_prometheus_text(server: Running) -> None:
    async with server.http.get(f"{server.ops_url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"tidewire_connections", "tidewire_ready", "tidewire_broker_up", "tidewire_api_requests"} <= families


async def test_the_ops_listener_serves_nothing_else(server: Running) -> None:
    for path in ("/", "/ws", "/api/v1/channels", "/metrics/"):
        assert (await probe(server, path))[1]["code"] == "not_found"
    for path in ("/healthz", "/readyz", "/metrics"):
        async with server.http.get(f"{server.url}{path}") as response:
            assert response.status == 404
