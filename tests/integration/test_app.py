"""The public application as any aiohttp runner takes it."""

from __future__ import annotations

from pytest_aiohttp.plugin import AiohttpClient

from service.app import build_app
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, CONTRACT, loaded, settings


async def test_build_app_returns_an_application_for_any_runner(aiohttp_client: AiohttpClient) -> None:
    clock = FakeClock()
    client = await aiohttp_client(build_app(settings(), loaded(CONTRACT), clock=clock))
    answer = await client.post(
        "/api/v1/channels/room:1/events",
        json={"type": "chat.message", "data": {"text": "hi"}},
        headers={"Authorization": f"Bearer {API_KEY}"},
    )
    assert (answer.status, (await answer.json())["offset"]) == (200, 1)
    assert (await client.get("/ws")).status == 426
    await client.close()
    assert clock.pending == 0, "what it started it has ended"
