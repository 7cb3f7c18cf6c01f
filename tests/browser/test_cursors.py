"""The shared canvas in a real browser: cursors, lines that stay, undo, lines that were drawn without a network."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import Demo, Window, open_window
from tests.browser.tabs import becomes

pytestmark = [pytest.mark.browser, pytest.mark.demos, pytest.mark.asyncio(loop_scope="session")]

LINES = "(user) => tidewire.channel('canvas:main').values.filter(({ from }) => from === user).length"
"""How many lines of a user the page has."""
INK = """([x, y]) => {
  const paper = document.querySelector('canvas');
  const context = paper.getContext('2d');
  const [left, top] = [Math.round((x / 1500) * paper.width), Math.round((y / 1000) * paper.height)];
  return context.getImageData(left - 2, top - 2, 5, 5).data.some((value) => value > 0);
}"""
"""Whether there is ink at a point of the sheet."""


async def open_canvas(browser: Browser, url: str, user: str) -> Window:
    return await open_window(browser, url, user, "cursors")


async def places_of(page: Page, points: tuple[tuple[int, int], ...]) -> list[tuple[float, float]]:
    """Where points of the sheet are in the window."""
    box = await page.get_by_test_id("paper").bounding_box()
    assert box is not None
    return [(box["x"] + x / 1500 * box["width"], box["y"] + y / 1000 * box["height"]) for x, y in points]


async def touch(page: Page, *points: tuple[int, int]) -> None:
    """Draws a line with a finger."""
    cdp = await page.context.new_cdp_session(page)
    await cdp.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    places = await places_of(page, points)
    for kind, (x, y) in zip(("touchStart", *["touchMove"] * (len(places) - 1)), places, strict=True):
        await cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    await cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


async def draw(page: Page, *points: tuple[int, int]) -> None:
    """Draws a line with the mouse, through points of the sheet."""
    places = await places_of(page, points)
    await page.mouse.move(*places[0])
    await page.mouse.down()
    for place in places[1:]:
        await page.mouse.move(*place, steps=5)
    await page.mouse.up()


async def lines(page: Page, user: str, count: int) -> None:
    """Waits until the page has that many lines of a user."""
    await becomes(page, f"({LINES})({user!r}) === {count}")


async def test_visitors_see_cursors_and_lines_of_each_other(demo: Demo, browser: Browser) -> None:
    one = await open_canvas(browser, demo.url, "agent-1")
    await expect(one.page.locator('.cursor[data-from="bot"]').first).to_be_visible()

    two = await open_canvas(browser, demo.url, "agent-2")
    await expect(one.page.locator('#people [data-user="agent-2"]')).to_have_count(1)
    await draw(two.page, (40, 40), (40, 120), (140, 120))
    await lines(one.page, "agent-2", 1)
    await becomes(one.page, INK, [40, 80])
    cursor = one.page.locator('.cursor[data-from="agent-2"]')
    await expect(cursor).to_have_text("Agent 2")
    await expect(one.page.locator('.cursor[data-from="bot"]')).to_have_count(0)

    await two.page.get_by_test_id("name").fill("Zoe")
    await two.page.get_by_test_id("name").press("Enter")
    await expect(one.page.locator('#people [data-user="agent-2"]')).to_contain_text("Zoe")

    await one.page.reload()
    await lines(one.page, "agent-2", 1)
    await becomes(one.page, INK, [40, 80])

    await draw(two.page, (200, 40), (260, 100))
    await draw(one.page, (300, 40), (360, 100))
    await lines(one.page, "agent-2", 2)
    await lines(two.page, "agent-1", 1)
    await two.page.get_by_test_id("undo").click()
    await lines(one.page, "agent-2", 1)
    await two.page.get_by_test_id("clear").click()
    await lines(one.page, "agent-2", 0)
    assert await one.page.evaluate(LINES, "agent-1") == 1, "others keep their lines"
    await becomes(one.page, f"!({INK})([40, 80])")

    await two.page.context.close()
    await expect(cursor).to_have_count(0)
    assert one.faults == two.faults == []


async def test_keyboard_draws_without_a_network_and_the_line_arrives_later(demo: Demo, browser: Browser) -> None:
    one = await open_canvas(browser, demo.proxied, "agent-1")
    two = await open_canvas(browser, demo.url, "agent-2")
    paper = one.page.get_by_test_id("paper")
    await paper.focus()
    await paper.press("ArrowUp")
    await expect(two.page.locator('.cursor[data-from="agent-1"]')).to_be_visible()

    demo.proxy.cut()
    await expect(one.page.get_by_test_id("connection")).not_to_contain_text("Online")
    for key in ("Space", "Shift+ArrowRight", "Shift+ArrowDown", "Space", "ArrowLeft"):
        await paper.press(key)
    await expect(one.page.get_by_text("1 line is sent when the connection is back")).to_be_visible()
    assert await two.page.evaluate(LINES, "agent-1") == 0
    demo.proxy.heal()

    await lines(two.page, "agent-1", 1)
    await expect(one.page.get_by_test_id("connection")).to_contain_text("Online")
    points: list[Any] = await two.page.evaluate(
        "tidewire.channel('canvas:main').values.find(({ from }) => from === 'agent-1').data.points"
    )
    assert points == [750, 490, 800, 490, 800, 540]
    await expect(one.page.locator("#unsent")).to_be_hidden()
    await paper.press("Control+z")
    await lines(two.page, "agent-1", 0)
    await touch(one.page, (1200, 80), (1300, 180))
    await lines(two.page, "agent-1", 1)
    await becomes(two.page, INK, [1250, 130])
    assert one.faults == two.faults == []
