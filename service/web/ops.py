"""The ops listener: liveness, readiness and metrics, on a port of its own that no ingress leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from service.errors import ErrorCode, ServiceError
from service.realtime.node import Node
from service.telemetry.metrics import CONTENT_TYPE, Metrics
from service.web import problem

READY_DEADLINE = 1.0
"""Seconds for one readiness check of the broker; must stay below the probe's timeoutSeconds."""


def build_ops(node: Node, metrics: Metrics, listening: Callable[[], bool]) -> web.Application:
    """The ops application. `listening`: whether the public listener accepts connections."""

    async def healthz(request: web.Request) -> web.Response:
        """The process runs and its event loop turns. Nothing else: a restart would not bring the broker back."""
        return web.json_response({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        """Whether this node should get new connections, and if not, why."""
        ready = False
        try:
            refusals = await _refusals(node, listening)
            ready = not refusals
            metrics.broker_up.set(all(refusal.code is not ErrorCode.BROKER_UNAVAILABLE for refusal in refusals))
        finally:
            metrics.ready.set(ready)
        if ready:
            return web.json_response({"status": "ready"})
        reasons = [{"code": refusal.code.code, "message": refusal.message} for refusal in refusals]
        return web.json_response({"status": "not ready", "reasons": reasons}, status=503)

    async def render(request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    app = web.Application(middlewares=[problem.middleware()])
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render)])
    return app


async def _refusals(node: Node, listening: Callable[[], bool]) -> list[ServiceError]:
    refusals = []
    if not listening():
        refusals.append(ServiceError(ErrorCode.OVERLOADED, "the public listener is not open"))
    refusal = await _refusal(node.check_ready)
    if refusal is not None:
        refusals.append(refusal)
        # A draining node does not ask its broker; the metric wants to know all the same.
        broker = await _refusal(node.broker.check) if refusal.code is not ErrorCode.BROKER_UNAVAILABLE else None
        if broker is not None:
            refusals.append(broker)
    return refusals


async def _refusal(check: Callable[[], Awaitable[None]]) -> ServiceError | None:
    try:
        async with asyncio.timeout(READY_DEADLINE):
            await check()
    except ServiceError as error:
        return error
    except TimeoutError:
        return ServiceError(ErrorCode.BROKER_UNAVAILABLE, f"the broker did not answer within {READY_DEADLINE:g} s")
    return None
