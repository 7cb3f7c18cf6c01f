"""The ops listener: liveness, readiness and metrics, on a port of its own that no ingress leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from service.errors import ErrorCode, ServiceError
from service.realtime.node import Node
from service.telemetry.metrics import CONTENT_TYPE, Metrics
from service.web import problem
from service.web.http.http_connections import HttpConnections
from service.web.ops.scrapes import Scrapes


class OpsProtocol(asyncio.Protocol):
    """The first protocol of a connection of the ops listener: counts it and hands it to aiohttp."""

    def __init__(self, connections: HttpConnections, server: Callable[[], asyncio.Protocol]) -> None:
        self._connections = connections
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        accepted = cast(asyncio.Transport, transport)  # told, not asked: uvloop's are no subclasses of asyncio's
        if self._connections.add(accepted, ""):
            handler = self._server()
            accepted.set_protocol(handler)
            handler.connection_made(accepted)


def build_ops(
    node: Node,
    metrics: Metrics,
    listening: Callable[[], bool],
    scrapes: Scrapes,
    middlewares: Sequence[Middleware] = (),
) -> web.Application:
    """The ops application. `listening`: whether the public listener accepts connections."""
    has_fault = False
    """Whether readiness could not be told the last time."""

    def is_ready() -> float:
        return float(not has_fault and not _refusals(node, listening) and not node.availability.health.is_worn_out)

    metrics.lifecycle.ready.set_function(
        is_ready
    )  # each scrape computes it: not everybody has a kubelet that asks /readyz

    async def healthz(request: web.Request) -> web.Response:
        """The process runs and its event loop turns. Nothing else: a restart would not bring the broker back."""
        return web.json_response({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        """Whether this node should get new connections, and if not, why. A broker that has gone only lately is told of."""
        nonlocal has_fault
        refusals = _refusals(node, listening)
        try:
            fault = await node.availability.health.fault()
        except Exception:
            has_fault = True
            raise
        has_fault = False
        if fault is not None and (refusals or node.availability.health.is_worn_out):
            refusals.append(fault)
        if refusals:
            return web.json_response({"status": "not ready", "reasons": _told(refusals)}, status=503)
        if fault is not None:
            return web.json_response({"status": "ready", "degraded": _told([fault])})
        return web.json_response({"status": "ready"})

    async def render(request: web.Request) -> web.Response:
        scrapes.note(request.remote or "")
        return web.Response(body=metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    app = web.Application(middlewares=[*middlewares, problem.middleware()])
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render)])
    return app


def _refusals(node: Node, listening: Callable[[], bool]) -> list[ServiceError]:
    refusals = []
    try:
        node.availability.check_ready()
    except ServiceError as error:
        refusals.append(error)
    if not listening():
        refusals.append(ServiceError(ErrorCode.OVERLOADED, "the public listener is not open"))
    return refusals


def _told(refusals: Sequence[ServiceError]) -> list[dict[str, str]]:
    return [{"code": refusal.code.code, "message": refusal.message} for refusal in refusals]
