"""docs/start/own-application.md: its words in a real browser, on a page from another origin than the service's."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Browser

from service.assets import client_folder
from tests.support import harness

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PAGE_TEXT = (Path(__file__).parents[2] / "docs" / "start" / "own-application.md").read_text(encoding="utf-8")
ADDRESS = "wss://example.com/ws"
PAGE = """<!doctype html><link rel="icon" href="data:,"><script>
  const shown = [], reloaded = [];
  const show = (text) => shown.push(text), reload = () => reloaded.push(true);
</script><script type="module">%s;globalThis.done = true;</script>"""


def block(language: str) -> str:
    """The only block of that language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE_TEXT, re.DOTALL)
    return str(found)


async def test_page_about_your_application_works_as_written(tmp_path: Path, browser: Browser) -> None:
    contract = tmp_path / "contract.yaml"
    contract.write_text(block("yaml"))
    snippet = block("js")
    assert snippet.count(ADDRESS) == 1
    address = ""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=PAGE % snippet.replace(ADDRESS, address), content_type="text/html")

    async def token(_request: web.Request) -> web.Response:
        return web.Response(text=harness.token("ann"))

    site = web.Application()
    site.add_routes([web.get("/", page), web.get("/my-token", token), web.static("/", client_folder())])
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with asyncio.timeout(30), harness.serving(contract=contract, origins=(origin,)) as server:
            address = f"{server.url}/ws".replace("http", "ws", 1)
            opened = await browser.new_page()
            faults: list[str] = []
            opened.on("pageerror", lambda error: faults.append(str(error)))
            opened.on("console", lambda message: faults.append(message.text))
            await opened.goto(origin)
            await opened.wait_for_function("globalThis.done && shown.length === 1")
            await server.publish("room:42", {"type": "chat.message", "data": {"text": "from the backend"}})
            await opened.wait_for_function("shown.length === 2")
            assert await opened.evaluate("[shown, reloaded]") == [["hi", "from the backend"], []]
            await opened.close()
        assert faults == []
    finally:
        await runner.cleanup()
