"""Runs a service that logs every failure that runbooks search for. Its log, on standard error, is like that of a pod.

python -m tests.support.pod_log
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import time

from aiohttp import web

from service.core.hooks import Hook, HookError, ReadQuestion
from service.errors import ErrorCode, ServiceError
from service.telemetry import log
from tests.stores.process import until
from tests.support.backend import SECRET as WHSEC
from tests.support.backend import serving_backend
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, Running, passes, serving
from tests.support.webhook_api import CONTRACT, letters, say

ENDPOINT = {"name": "moderation", "url": "http://127.0.0.1:1/", "tenants": ["default"], "secrets": [WHSEC]}
"""Nothing listens there."""
FILLER = 40
"""Lines after the searched ones, so that a command that reads only the end of a log misses them."""


async def main() -> None:
    """Causes all failures, one after another."""
    log.configure("info", "json")
    await _webhook()
    async with serving(hooks={"endpoints": [ENDPOINT]}) as server:
        await _faulty_request(server)
        await _broker_outage(server)
        await _hook(server)
        _clocks(server)
        await _dead_task(server)
        for number in range(FILLER):
            log.get_logger("tests").info("something else", number=number)
    log.flush()


async def _faulty_request(server: Running) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault for the test")

    publisher = server.service.node.publisher
    publisher.publish = broken  # type: ignore[method-assign, assignment]  # to fail
    async with server.http.post(
        f"{server.url}/api/v1/channels/room:1/events",
        json={"type": "room.said", "data": {}},
        headers={"Authorization": f"Bearer {API_KEY}"},
    ) as response:
        assert response.status == 500, await response.text()


async def _broker_outage(server: Running) -> None:
    node = server.service.node
    answers = node.broker.check

    async def away() -> None:
        raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "connection refused")

    node.broker.check = away  # type: ignore[method-assign]  # to fail
    await node.availability.health.check()
    node.broker.check = answers  # type: ignore[method-assign]  # as it was
    await node.availability.health.check()


async def _hook(server: Running) -> None:
    with suppress(HookError):
        await server.service.hooks.ask(Hook("moderation"), ReadQuestion("default", "ann", "room:1", "subscribe"))


async def _webhook() -> None:
    """A receiver is overloaded for a while, and then refuses an entry."""
    clock = FakeClock()
    is_overloaded = True

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=503 if is_overloaded else 422)

    async with serving_backend() as receiver:
        receiver.reply, receiver.secrets = refuse, []  # the signatures of another time are not good
        endpoint = {**ENDPOINT, "name": "archive", "url": receiver.url}
        webhooks = {"endpoints": [endpoint], "queues": 1, "attempts": 1}
        async with serving(contract=CONTRACT, webhooks=webhooks, clock=clock) as server:
            await say(server, "room:1", "refused")

            async def has_refused() -> bool:
                await passes(clock, 1.0)
                return len(receiver.questions) >= 8  # for longer than an outage of the broker could explain

            async def has_given_up() -> bool:
                await passes(clock, 1.0)
                return bool(await letters(server))

            await until(has_refused, "deliveries")
            is_overloaded = False
            await until(has_given_up, "a dead letter")


def _clocks(server: Running) -> None:
    for ahead in (60.0, 0.0):
        server.service.store_clock.record("one", time() + ahead, 0.0)


async def _dead_task(server: Running) -> None:
    async def dies() -> None:
        raise RuntimeError("a fault for the test")

    task = server.service.node.runtime.tasks.spawn("a task of the test", dies(), critical=True)
    await asyncio.wait([task])


if __name__ == "__main__":
    asyncio.run(main())
