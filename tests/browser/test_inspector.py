"""The inspector in a real browser: six faults break its connection, and the durable channel misses nothing."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import Demo, open_window

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PLAYED = 240_000
"""Milliseconds that all faults together may take on a busy machine."""
FAULTS = ("cut", "reset", "slow", "revoke", "restart", "block")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def count_of(page: Page, name: str) -> int:
    return int((await page.get_by_test_id(name).inner_text()).replace(",", ""))


async def losses_of(page: Page, fault: str) -> tuple[int, int]:
    """The durable events that are missing after a fault, and the plain events that it has lost."""
    cells = await page.locator(f'tr[data-fault="{fault}"] td').all_inner_texts()
    missing, lost = (int(re.sub(r"\D", "", cell)) for cell in cells[2:])
    return missing, lost


async def test_inspector_faults_lose_and_repeat_no_durable_event(
    shared_demo: Demo, browser: Browser, request: pytest.FixtureRequest
) -> None:
    window = await open_window(browser, shared_demo.url, "visitor", "inspector")
    page = window.page
    await expect(page.get_by_test_id("play-all")).to_be_enabled()
    await page.get_by_test_id("play-all").click()
    await expect(page.get_by_test_id("connection")).to_contain_text("Online over HTTP", timeout=PLAYED)
    await expect(page.get_by_test_id("summary")).to_contain_text("none is missing", timeout=PLAYED)

    losses = {fault: await losses_of(page, fault) for fault in FAULTS}
    assert {fault: missing for fault, (missing, _) in losses.items()} == dict.fromkeys(FAULTS, 0)
    assert losses["cut"][1] > 0, "three seconds of plain Pub/Sub are lost"
    for counter in ("missing", "repeated", "disordered"):
        assert await count_of(page, f"kept-{counter}") == 0, counter
    assert await count_of(page, "kept-recovered") > 0
    assert await count_of(page, "plain-missing") > 0
    assert "eyJ" not in await page.get_by_test_id("frames").inner_text(), "tokens are masked"

    shots = Path(request.config.rootpath) / "build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    await page.get_by_test_id("how").locator("summary").click()
    await expect(page.get_by_test_id("how")).to_contain_text("number.kept: {publish: server, delivery: durable")
    await expect(page.get_by_test_id("how")).to_contain_text("client.connect();")
    for width, dark in product((390, 768, 1440), (False, True)):
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme="dark" if dark else "light")
        assert await page.evaluate(OVERFLOW) <= 0, (width, dark)
        await page.evaluate("scrollTo(0, 0)")
        await page.screenshot(path=shots / f"inspector-{'dark' if dark else 'light'}-{width}.png", full_page=True)
    assert window.faults == []


async def test_start_page_leads_to_each_demo(shared_demo: Demo, browser: Browser) -> None:
    page = await browser.new_page()
    await page.goto(shared_demo.url)
    links = page.get_by_test_id("demo")
    await expect(links.first).to_have_attribute("href", "/demo/inspector/")
    for link in await links.all():
        response = await page.request.get(f"{shared_demo.url}{await link.get_attribute('href')}")
        assert response.ok, response.url
    for width in (390, 768, 1440):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.evaluate(OVERFLOW) <= 0, width
