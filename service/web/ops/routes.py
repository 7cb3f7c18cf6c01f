"""The ops listener: liveness, readiness and metrics, on a separate port that no ingress exposes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from service.errors import ErrorCode, ServiceError
from service.realtime.node import Node
from service.telemetry.metrics import CONTENT_TYPE, Metrics
from service.web.http.http_connections import HttpConnections
from service.web.ops.scrape_tracker import ScrapeTracker
from service.web.problem import problem_middleware


class OpsProtocol(asyncio.Protocol):
    """The first protocol of an ops connection: counts the connection, then hands it to aiohttp."""

    def __init__(self, connections: HttpConnections, server: Callable[[], asyncio.Protocol]) -> None:
        self._connections = connections
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hands the connection to aiohttp, unless the cap refuses it."""
        accepted = cast(asyncio.Transport, transport)  # a cast: uvloop's transports do not subclass asyncio's
        if self._connections.add(accepted, ""):
            handler = self._server()
            accepted.set_protocol(handler)
            handler.connection_made(accepted)


def build_ops_app(
    node: Node,
    metrics: Metrics,
    is_listening: Callable[[], bool],
    scrape_tracker: ScrapeTracker,
    middlewares: Sequence[Middleware] = (),
) -> web.Application:
    """The ops application. `is_listening`: whether the public listener accepts connections."""
    has_check_failed = False
    """Whether the last readiness check raised."""

    def is_ready() -> float:
        reasons = _find_reasons(node, is_listening)
        return float(
            not has_check_failed and not reasons and not node.availability.health.is_unavailable_past_threshold
        )

    # Computed at each scrape: outside of Kubernetes nobody polls /readyz.
    metrics.lifecycle.ready.set_function(is_ready)

    async def healthz(request: web.Request) -> web.Response:
        """Liveness: the event loop answers. The broker is not checked, because a restart would not restore it."""
        return web.json_response({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        """Readiness: whether this node takes new connections, and why not. A short broker outage is only `degraded`."""
        nonlocal has_check_failed
        reasons = _find_reasons(node, is_listening)
        try:
            broker_fault = await node.availability.health.check()
        except Exception:
            has_check_failed = True
            raise
        has_check_failed = False
        if broker_fault is not None and (reasons or node.availability.health.is_unavailable_past_threshold):
            reasons.append(broker_fault)
        if reasons:
            return web.json_response({"status": "not ready", "reasons": _describe(reasons)}, status=503)
        if broker_fault is not None:
            return web.json_response({"status": "ready", "degraded": _describe([broker_fault])})
        return web.json_response({"status": "ready"})

    async def render_metrics(request: web.Request) -> web.Response:
        scrape_tracker.record(request.remote or "")
        return web.Response(body=metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    app = web.Application(middlewares=[*middlewares, problem_middleware()])
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render_metrics)])
    return app


def _find_reasons(node: Node, is_listening: Callable[[], bool]) -> list[ServiceError]:
    reasons = []
    try:
        node.availability.check_ready()
    except ServiceError as error:
        reasons.append(error)
    if not is_listening():
        reasons.append(ServiceError(ErrorCode.OVERLOADED, "the public listener is not open"))
    return reasons


def _describe(reasons: Sequence[ServiceError]) -> list[dict[str, str]]:
    return [{"code": reason.code.code, "message": reason.message} for reason in reasons]
