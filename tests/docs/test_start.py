"""Pages whose code needs a browser or another program."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from tests.docs.blocks import ROOT, blocks
from tests.docs.console import Page, Rule, play
from tests.support import harness
from tests.support.harness import serving

pytestmark = [pytest.mark.docs, pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

TIMEOUT = 30_000
"""Milliseconds that a page may take to show something."""


async def test_plain_page_shows_what_the_backend_publishes(tmp_path: Path, browser: Browser) -> None:
    """The commands of docs/start/browser.md, and then its page in a browser."""
    page = Page(
        "docs/start/browser.md",
        (
            Rule(r"^(git clone|cd tidewire$|scripts/setup\.sh )", skip="the test has a checkout that is set up"),
            Rule(r"^mkdir app$", skip="the test has made it"),
            Rule(r"tidewire serve$", serve="../.venv/bin/tidewire serve"),
            Rule("http.server", background=True),
        ),
        folder="app",
    )

    async def look(ports: dict[str, int]) -> None:
        window = await browser.new_page()
        await harness.eventually(lambda: _listens(ports["3000"]))
        await window.goto(f"http://localhost:{ports['3000']}")
        await expect(window.locator("#state")).to_have_text("ready", timeout=TIMEOUT)
        await expect(window.locator("#orders li")).to_have_text(["Order 7: shipped"], timeout=TIMEOUT)
        await window.close()

    faults = await play(page, tmp_path, look)
    assert not faults, "\n\n".join(faults)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_event_source_of_the_page_follows_a_channel(browser: Browser) -> None:
    """`follow` of docs/streams.md."""
    [script] = [block.text for block in blocks(ROOT / "docs" / "streams.md") if block.language == "js"]
    html = f"""<!doctype html><link rel="icon" href="data:,"><script>
      const types = [];
      const fetchToken = async () => {harness.token("ann")!r};
      {script}
      follow('room:42', (event) => types.push(event.type));
    </script>"""
    async with asyncio.timeout(60), serving() as server:
        window = await browser.new_page()

        async def answer(route: Route) -> None:  # a page of the service's origin
            await route.fulfill(body=html, content_type="text/html")

        await window.route(f"{server.url}/page", answer)
        await window.goto(f"{server.url}/page")
        await window.wait_for_function("types.includes('subscribed')")
        await server.publish("room:42", {"type": "chat.message", "data": {"text": "hi"}})
        await window.wait_for_function("types.includes('chat.message')")
        await window.close()
