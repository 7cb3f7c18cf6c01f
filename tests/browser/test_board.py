"""The live board in a real browser: full charts at once, honest ones without a network, and whole again after it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import Demo, open_window
from tests.browser.tabs import becomes

pytestmark = [pytest.mark.browser, pytest.mark.demos, pytest.mark.asyncio(loop_scope="session")]

PAGE = "board"
METRICS = 6
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def expect_whole(page: Page) -> None:
    """All charts have a sample for every second of their range."""
    await expect(page.locator('[data-testid="chart"][data-gaps="0"]')).to_have_count(4)
    await expect(page.locator('[data-testid="tile"][data-old="false"]')).to_have_count(METRICS)
    await expect(page.get_by_test_id("age")).to_have_attribute("data-old", "false")


async def test_outage_shows_as_a_gap_and_is_filled_afterwards(shared_demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, shared_demo.proxied, "agent-1", PAGE)
    page = window.page
    await expect_whole(page)

    shared_demo.proxy.cut()
    await expect(page.locator('[data-testid="tile"][data-old="true"]')).to_have_count(METRICS)
    await expect(page.get_by_test_id("age")).to_contain_text("No connection")
    await expect(page.locator('[data-testid="chart"][data-gaps="1"]')).to_have_count(4)
    shared_demo.proxy.heal()

    await expect_whole(page)
    await page.get_by_test_id("as-table").click()
    await page.get_by_label("1 min").check(force=True)
    rows = page.get_by_test_id("rows")
    await expect(rows.locator("tr")).to_have_count(30)
    await expect(rows.locator("tr:nth-child(n+3) td", has_text="–")).to_have_count(0)
    assert window.faults == []


async def test_late_window_reads_fifteen_minutes_and_works_by_keyboard(shared_demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, shared_demo.url, "agent-1", PAGE)
    page = window.page
    await expect_whole(page)
    await page.keyboard.press("f")
    plot = page.get_by_test_id("plot").first
    await expect(plot).to_have_attribute("aria-valuemax", "900")
    await plot.focus()
    # The first second of the range: it is read from the history.
    await becomes(
        page,
        """plot => {
          plot.dispatchEvent(new KeyboardEvent('keydown', { key: 'Home', bubbles: true }));
          return /Requests \\d+ .s$/.test(plot.getAttribute('aria-valuetext'));
        }""",
        await plot.element_handle(),
    )
    await page.keyboard.press("p")
    await page.keyboard.press("Home")
    paused = await plot.get_attribute("aria-valuetext")
    values = page.get_by_test_id("tile-value")
    before = await values.all_inner_texts()
    await becomes(
        page,
        "before => [...document.querySelectorAll('[data-testid=tile-value]')].some((one, n) => one.innerText !== before[n])",
        before,
    )
    await page.keyboard.press("Home")
    assert await plot.get_attribute("aria-valuetext") == paused
    await page.keyboard.press("ArrowRight")
    await expect(plot).to_have_attribute("aria-valuenow", "1")
    assert window.faults == []


async def test_board_fits_every_width_and_theme(
    shared_demo: Demo, browser: Browser, request: pytest.FixtureRequest
) -> None:
    shots = Path(request.config.rootpath) / "build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    window = await open_window(browser, shared_demo.url, "agent-1", PAGE)
    page = window.page
    for width, dark in product((390, 1440), (False, True)):
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme="dark" if dark else "light")
        await expect_whole(page)
        assert await page.evaluate(OVERFLOW) <= 0, (width, dark)
        await page.screenshot(path=shots / f"board-{'dark' if dark else 'light'}-{width}.png", full_page=True)
    assert window.faults == []
