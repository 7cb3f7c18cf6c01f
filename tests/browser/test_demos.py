"""Every page of the demos: no error in two browsers, every size and theme, accessibility, keyboard, weight.

`make test` opens each page once, in Chromium. `make test-demos` does everything.
"""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Response

from tests.browser.axe import severe_faults
from tests.browser.conftest import PATIENCE, Demo
from tests.browser.demo_pages import PAGES, DemoPage
from tests.browser.firefox import Firefox, FirefoxPage
from tests.browser.tabs import Tab, becomes

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

WIDTHS = (390, 768, 1024, 1440)
HEIGHTS = {390: 844, 768: 1024, 1024: 768, 1440: 900}
CHECKED_WIDTHS = (390, 1440)
"""Widths at which axe-core looks for faults."""
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
REMEMBER = """() => {
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;
  const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex]')];
  globalThis.unreached = new Set(all.filter((element) => element.tabIndex >= 0 && !element.disabled && isShown(element)));
  document.addEventListener('focusin', ({ target }) => {
    unreached.delete(target);
    // One radio button of a group is reached by Tab, the others by arrows.
    for (const other of unreached) if (other.type === 'radio' && other.name === target.name) unreached.delete(other);
  });
  document.body.tabIndex = -1;
  document.body.focus();
}"""
LEFT = """[...unreached]
  .filter((element) => element.isConnected && element.checkVisibility({ visibilityProperty: true }) && !element.disabled)
  .map((element) => element.outerHTML.slice(0, 120))"""
POINTER_ONLY = """[...document.querySelectorAll('body *')].filter((element) => getComputedStyle(element).cursor === 'pointer'
  && !element.closest('a, button, label, summary, input, select, textarea, [tabindex]') && element.checkVisibility())
  .map((element) => element.outerHTML.slice(0, 120))"""
"""What looks as if it could be clicked, and cannot have the focus."""


@asynccontextmanager
async def opened(
    browser: Browser, url: str, page: DemoPage, *, width: int = 1440, dark: bool = False
) -> AsyncIterator[Page]:
    """A page that works, without an error on its console then and at the end."""
    context = await browser.new_context(
        color_scheme="dark" if dark else "light",
        viewport={"width": width, "height": HEIGHTS[width]},
        reduced_motion="reduce",
    )
    tab = await context.new_page()
    tab.set_default_timeout(PATIENCE)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    await tab.goto(url + page.address())
    await works(tab, page)
    yield tab
    assert errors == []
    await context.close()


async def works(tab: Tab, page: DemoPage) -> None:
    for step in page.works:
        await becomes(tab, step)


async def test_each_page_works(shared_demo: Demo, browser: Browser) -> None:
    for name, page in PAGES.items():
        async with opened(browser, shared_demo.url, page) as tab:
            assert await tab.evaluate(OVERFLOW) <= 0, name
            if name in ("inspector", "cursors", "tracking"):
                faults = await severe_faults(tab)
                assert not faults, "\n".join([name, *faults])


@pytest.mark.demos
@pytest.mark.parametrize("name", PAGES)
async def test_page_works_in_firefox(shared_demo: Demo, firefox: Firefox, name: str) -> None:
    context = await firefox.new_context()
    tab = await context.new_page()
    assert isinstance(tab, FirefoxPage)
    await tab.goto(shared_demo.url + PAGES[name].address())
    await works(tab, PAGES[name])
    assert tab.errors == []
    await context.close()


@pytest.mark.demos
@pytest.mark.parametrize("name", PAGES)
async def test_page_fits_every_width_and_theme(shared_demo: Demo, browser: Browser, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    faults = []
    for width, dark in product(WIDTHS, (False, True)):
        theme = "dark" if dark else "light"
        async with opened(browser, shared_demo.url, PAGES[name], width=width, dark=dark) as tab:
            await tab.screenshot(path=SHOTS / f"{name}-{theme}-{width}.png", full_page=True)
            if (overflow := await tab.evaluate(OVERFLOW)) > 0:
                faults.append(f"{width} {theme}: {overflow} pixels too wide")
            if width in CHECKED_WIDTHS:
                faults += [f"{width} {theme}: {fault}" for fault in await severe_faults(tab)]
    assert not faults, "\n".join(faults)


@pytest.mark.demos
@pytest.mark.parametrize("name", PAGES)
async def test_keyboard_reaches_everything(shared_demo: Demo, browser: Browser, name: str) -> None:
    async with opened(browser, shared_demo.url, PAGES[name]) as tab:
        assert await tab.evaluate(POINTER_ONLY) == []
        await tab.evaluate(REMEMBER)
        for _ in range(await tab.evaluate("unreached.size + 20")):
            await tab.keyboard.press("Tab")
        assert await tab.evaluate(LEFT) == []


@pytest.mark.demos
@pytest.mark.parametrize("name", PAGES)
async def test_page_stays_within_its_weight(shared_demo: Demo, browser: Browser, name: str) -> None:
    page = PAGES[name]
    responses: list[Response] = []

    def note(response: Response) -> None:
        responses.append(response)

    context = await browser.new_context()
    tab = await context.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.on("response", note)
    await tab.goto(shared_demo.url + page.address())
    await works(tab, page)
    await becomes(tab, PAINTED)
    painted = await tab.evaluate(PAINTED)
    bodies = [await response.body() for response in responses]
    raw = sum(map(len, bodies)) / 1000
    packed = sum(len(gzip.compress(body)) for body in bodies) / 1000
    print(
        f"\n{name:10} {len(bodies):3} requests {raw:7.1f} kB, {packed:6.1f} kB with gzip, first content after {painted:.0f} ms"
    )
    assert len(bodies) <= page.requests
    assert packed <= page.kilobytes
    await context.close()
