"""The ops listener: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp import AiohttpClient

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.errors import ErrorCode, ServiceError
from service.realtime.lifecycle.broker_health import CHECK_INTERVAL
from service.web.ops.routes import build_ops_app
from tests.support.clock import FakeClock
from tests.support.exported import exported
from tests.support.harness import DEADLINE, Running, eventually, serving


class FaultyBroker(MemoryBroker):
    """A broker whose check fails or hangs on demand."""

    def __init__(self) -> None:
        super().__init__(
            SystemClock(), idempotency_window=300, idempotency_entries=1000, channels=100, max_bytes=1_000_000
        )
        self.fault: Exception | None = None
        self.hangs = False
        self.check_cancelled = asyncio.Event()
        """Set when a hanging check is cancelled."""

    async def check(self) -> None:
        if self.fault is not None:
            raise self.fault
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.check_cancelled.set()
        await super().check()


async def probe(server: Running, path: str) -> tuple[int, dict[str, Any]]:
    async with server.http.get(f"{server.ops_url}{path}") as response:
        return response.status, await response.json(content_type=None)


async def test_ops_of_a_running_service_reports_alive_and_ready(server: Running) -> None:
    assert await probe(server, "/healthz") == (200, {"status": "ok"})
    assert await probe(server, "/readyz") == (200, {"status": "ready"})
    metrics = await server.metrics()
    assert (metrics["tidewire_ready"], metrics["tidewire_broker_up"]) == (1, 1)


async def test_readyz_without_broker_fails_while_healthz_passes() -> None:
    broker = FaultyBroker()
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


async def test_readyz_during_a_short_broker_outage_reports_degraded() -> None:
    broker, clock = FaultyBroker(), FakeClock()
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
        assert (await probe(server, "/readyz"))[0] == 200, "the outage is timed from its own start"


async def test_broker_outage_without_probes_is_still_timed() -> None:
    broker, clock = FaultyBroker(), FakeClock()
    async with serving(broker=broker, clock=clock, broker_settings={"unready_after": 30}) as server:
        clock.advance(CHECK_INTERVAL)
        await eventually(lambda: exported(server.service.metrics, "broker_up") == 1)
        broker.fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "no answer on port 6379")
        clock.advance(CHECK_INTERVAL)
        await eventually(lambda: exported(server.service.metrics, "broker_up") == 0)
        clock.advance(30)
        assert (await probe(server, "/readyz"))[0] == 503


async def test_readyz_with_a_hanging_broker_times_out() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker, broker_settings={"unready_after": 0}) as server:
        broker.hangs = True
        async with asyncio.timeout(DEADLINE):
            readiness = asyncio.ensure_future(probe(server, "/readyz"))
            assert await probe(server, "/healthz") == (200, {"status": "ok"})
            status, body = await readiness
        assert (status, body["reasons"][0]["code"]) == (503, "broker_unavailable")
        assert broker.check_cancelled.is_set()


async def test_readyz_while_draining_still_reports_the_broker() -> None:
    broker = FaultyBroker()
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


async def test_readyz_after_a_critical_task_died_fails(server: Running) -> None:
    async def dies() -> None:
        raise RuntimeError("a fault for the test")

    node = server.service.node
    task = node.runtime.tasks.spawn("example", dies(), critical=True)
    await asyncio.wait([task])
    status, body = await probe(server, "/readyz")
    assert (status, body["reasons"][0]["message"]) == (503, "the task 'example' has died")
    assert (await probe(server, "/healthz"))[0] == 200


async def test_readyz_whose_check_raises_answers_500_and_not_ready() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker, broker_settings={"unready_after": 0}) as server:
        assert (await probe(server, "/readyz"))[0] == 200
        broker.fault = RuntimeError("a fault for the test")
        status, body = await probe(server, "/readyz")
        assert (status, body["code"]) == (500, "internal")
        assert (await server.metrics())["tidewire_ready"] == 0


async def test_readyz_before_listening_fails(server: Running, aiohttp_client: AiohttpClient) -> None:
    is_listening, node = False, server.service.node
    client = await aiohttp_client(
        build_ops_app(node, server.service.metrics, lambda: is_listening, server.service.scrape_tracker)
    )
    async with client.get("/readyz") as response:
        assert response.status == 503
        assert (await response.json())["reasons"][0]["message"] == "the public listener is not open"
        assert (await server.metrics())["tidewire_ready"] == 0
    is_listening = True
    assert (await server.metrics())["tidewire_ready"] == 1, "the gauge does not depend on requests to /readyz"
    async with client.get("/readyz") as response:
        assert response.status == 200


async def test_metrics_response_is_prometheus_text(server: Running) -> None:
    async with server.http.get(f"{server.ops_url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"tidewire_connections", "tidewire_ready", "tidewire_broker_up", "tidewire_api_requests"} <= families


async def test_ops_listener_serves_only_its_three_paths(server: Running) -> None:
    for path in ("/", "/ws", "/api/v1/channels", "/metrics/"):
        assert (await probe(server, path))[1]["code"] == "not_found"
    for path in ("/healthz", "/readyz", "/metrics"):
        async with server.http.get(f"{server.url}{path}") as response:
            assert response.status == 404
