"""The JavaScript client in Chromium and Firefox where WebSockets are blocked: a page of one origin, the service at another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.browser.tabs import AnyBrowser, Tab
from tests.support.harness import serving, token
from tests.support.http_proxy import HttpProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SOURCE = Path(__file__).parents[2] / "clients" / "js" / "src"
CONNECT = """async ([url, token]) => {
  const { Tidewire } = await import('/src/tidewire.js');
  const client = (window.client = new Tidewire(url, { token: () => token }));
  window.texts = [];
  const room = (window.room = client.channel('room:1'));
  room.on('chat.message', ({ data }) => window.texts.push(data.text));
  client.connect();
  await room.subscribed;
  return client.status.transport;
}"""


@asynccontextmanager
async def site() -> AsyncIterator[str]:
    """Serves an empty page and the files of the client; yields its origin."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>page</title>", content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/", page), web.static("/src", SOURCE)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def shown(page: Tab, *texts: str) -> None:
    """Waits for the events that the page has got, in order."""
    await page.wait_for_function("(wanted) => JSON.stringify(window.texts) === wanted", arg=_json(texts))


def _json(texts: tuple[str, ...]) -> str:
    return "[" + ",".join(f'"{text}"' for text in texts) + "]"


@pytest.mark.parametrize("transport", ["stream", "poll"])
async def test_page_of_another_origin_falls_back_and_returns(each_browser: AnyBrowser, transport: str) -> None:
    async with asyncio.timeout(60), site() as origin, serving(origins=(origin,)) as server:
        proxy = HttpProxy(int(server.url.rpartition(":")[2]))
        proxy.upgrades = "refuse"
        proxy.holds_streams = transport == "poll"
        url = f"ws://127.0.0.1:{await proxy.start()}/ws"
        page = await (await each_browser.new_context()).new_page()
        try:
            await page.goto(origin)
            assert await page.evaluate(CONNECT, [url, token()]) == transport
            await server.publish("room:1", {"type": "chat.message", "data": {"text": "1"}})
            await shown(page, "1")
            ack = await page.evaluate("window.room.publish('chat.message', { text: '2' })")
            assert ack["offset"] == 2
            await shown(page, "1", "2")
            history = await page.evaluate("window.room.history()")
            assert [event["offset"] for event in history["events"]] == [1, 2]
            refused = "window.room.publish('chat.message', {}).catch(({ code }) => code)"
            assert await page.evaluate(refused) == "invalid_data"

            await page.goto(f"{origin}/?again")  # the tab remembers it
            tries = proxy.paths.count("/ws")
            assert await page.evaluate(CONNECT, [url, token()]) in (transport, "poll")
            assert proxy.paths.count("/ws") == tries

            proxy.upgrades = "pass"
            await page.evaluate("window.dispatchEvent(new Event('online'))")
            await page.wait_for_function(
                "window.client.status.transport === 'websocket' && window.client.state === 'ready'"
            )
            await page.evaluate("window.room.publish('chat.message', { text: '3' })")
            await shown(page, "3")
        finally:
            await page.close()
            await proxy.close()
