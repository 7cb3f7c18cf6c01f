"""The site that `make docs` has built, in a browser that reaches no other host."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.async_api import Browser, Page, Request, Route, expect

from tests.docs.blocks import ROOT

pytestmark = [pytest.mark.docs, pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SITE = ROOT / "build" / "site"
TIMEOUT = 30_000
"""Milliseconds that a page may take to show something."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of the site."""
    assert (SITE / "index.html").exists(), "run `make docs` first"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def reader(browser: Browser, site: str, *, dark: bool = False, width: int = 1440) -> AsyncIterator[Page]:
    """A window that reaches the site only. Fails the test if a page asks another host, or has an error."""
    context = await browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": 900}
    )
    faults: list[str] = []

    async def refuse(route: Route, request: Request) -> None:
        faults.append(request.url)
        await route.abort()

    await context.route(lambda url: not url.startswith((site, "data:", "blob:")), refuse)
    page = await context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    async with asyncio.timeout(TIMEOUT * 3 / 1000):
        yield page
    await context.close()
    assert faults == []


async def test_search_finds_a_page(browser: Browser, site: str) -> None:
    async with reader(browser, site) as page:
        await page.goto(site)
        await page.keyboard.press("Control+k")
        await page.locator("input:visible").first.fill("revoke a token")
        await expect(page.get_by_text("Revoking tokens").first).to_be_visible(timeout=TIMEOUT)


async def test_diagrams_are_drawn(browser: Browser, site: str) -> None:
    async with reader(browser, site) as page:
        await page.goto(f"{site}/ARCHITECTURE/")
        await page.locator(".mermaid").nth(1).scroll_into_view_if_needed()
        # Zensical draws each diagram into a closed shadow tree, which only its size shows.
        await page.wait_for_function(
            "[...document.querySelectorAll('div.mermaid')].filter((each) => each.clientHeight > 200).length === 2"
        )


@pytest.mark.parametrize("dark", [False, True])
async def test_drawing_follows_the_theme(browser: Browser, site: str, dark: bool) -> None:
    async with reader(browser, site, dark=dark) as page:
        await page.goto(f"{site}/docs/concepts/")
        theme, other = ("dark", "light") if dark else ("light", "dark")
        await expect(page.locator(f'img[src*="concept-resume-{theme}"]')).to_be_visible(timeout=TIMEOUT)
        await expect(page.locator(f'img[src*="concept-resume-{other}"]')).to_be_hidden()


@pytest.mark.parametrize("path", ["/", "/docs/protocol/", "/docs/concepts/", "/helm/tidewire/", "/docs/start/curl/"])
async def test_page_is_not_wider_than_a_phone(browser: Browser, site: str, path: str) -> None:
    async with reader(browser, site, width=390) as page:
        await page.goto(f"{site}{path}")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_page_for_wrong_addresses_leads_back(browser: Browser, site: str) -> None:
    async with reader(browser, site) as page:
        await page.goto(f"{site}/404.html")
        await expect(page.get_by_text("404")).to_be_visible(timeout=TIMEOUT)
        await page.get_by_role("link", name="Concepts").first.click()
        await expect(page.locator("h1")).to_contain_text("Concepts", timeout=TIMEOUT)
