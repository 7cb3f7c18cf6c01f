"""The streaming answer in a real browser: cut, reload, and a window that comes late have the same text."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from demo.simulations.answer import ANSWERS
from tests.browser.conftest import Demo, open_window
from tests.browser.tabs import becomes

pytestmark = [pytest.mark.browser, pytest.mark.demos, pytest.mark.asyncio(loop_scope="session")]

PAGE = "answer"
POEM = "Write a short poem about a queue"
LONG = "Why does a chart need every sample, but a price only the newest?"
TEXT = """() => document.querySelector('[data-testid=text]')?.textContent ?? ''"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def ask(page: Page, question: str) -> None:
    await page.get_by_role("button", name=question).click()


async def expect_text(page: Page) -> None:
    """Some words have come."""
    await becomes(page, "() => (document.querySelector('[data-testid=text]')?.textContent ?? '').length > 10")


async def expect_state(page: Page, state: str) -> None:
    await expect(page.get_by_test_id("answer")).to_have_attribute("data-state", state)


async def test_cut_reload_and_late_window_read_the_same_answer(shared_demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, shared_demo.proxied, "agent-1", PAGE, fragment="cut")
    two = await open_window(browser, shared_demo.url, "agent-2", PAGE, fragment="cut")
    await ask(one.page, POEM)
    await expect_text(one.page)
    shared_demo.proxy.cut()
    await expect_text(two.page)
    await two.page.reload()
    late = await open_window(browser, shared_demo.url, "agent-3", PAGE, fragment="cut")
    await expect(one.page.get_by_test_id("connection")).not_to_contain_text("Online")
    before = await one.page.evaluate(TEXT)
    shared_demo.proxy.heal()

    for window in (one, two, late):
        await expect_state(window.page, "complete")
        assert await window.page.evaluate(TEXT) == ANSWERS[POEM]
        await expect(window.page.get_by_test_id("asked")).to_have_text(POEM)
        assert window.faults == []
    assert ANSWERS[POEM].startswith(before)
    await expect(one.page.locator('[data-testid="people"] [data-user]')).to_have_count(3)


async def test_stop_ends_the_answer_for_everybody(shared_demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, shared_demo.url, "agent-1", PAGE, fragment="stop")
    two = await open_window(browser, shared_demo.url, "agent-2", PAGE, fragment="stop")
    await ask(one.page, LONG)
    await expect_text(two.page)
    await two.page.get_by_test_id("stop").click()
    for window in (one, two):
        await expect_state(window.page, "stopped")
        await expect(window.page.get_by_test_id("stop")).to_be_hidden()
    texts = [await window.page.evaluate(TEXT) for window in (one, two)]
    assert texts[0] == texts[1] != ANSWERS[LONG]
    assert ANSWERS[LONG].startswith(texts[0])
    assert one.faults == two.faults == []


async def test_question_asked_offline_is_answered_later(shared_demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, shared_demo.proxied, "agent-1", PAGE, fragment="offline")
    page = window.page
    shared_demo.proxy.cut()
    await expect(page.get_by_test_id("connection")).not_to_contain_text("Online")
    await page.get_by_test_id("question").fill("Is anybody there?")
    await page.keyboard.press("Enter")
    await expect_state(page, "pending")
    await expect(page.get_by_test_id("answer")).to_contain_text("when there is a connection")
    shared_demo.proxy.heal()
    await expect_text(page)
    await expect(page.get_by_test_id("asked")).to_have_text("Is anybody there?")
    await page.keyboard.press("Escape")
    await expect(page.get_by_test_id("stop")).to_be_hidden()
    assert window.faults == []


async def test_answer_older_than_the_list_is_completed_on_demand(shared_demo: Demo, browser: Browser) -> None:
    begin = {"type": "answer.begin", "from": "agent-2", "data": {"answer": "long-answer", "question": "Count"}}
    deltas = [
        {"type": "answer.delta", "data": {"answer": "long-answer", "index": index, "text": f"{index} "}}
        for index in range(600)
    ]
    key = (shared_demo.folder / ".tidewire" / "api-key").read_text()
    events = [{"channel": "conversation:long", **event} for event in (begin, *deltas)]
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as backend,
        backend.post(f"{shared_demo.url}/api/v1/events", json=events) as answer,
    ):
        assert answer.status == 200
    window = await open_window(browser, shared_demo.url, "agent-1", PAGE, fragment="long")
    text = window.page.get_by_test_id("text")
    await expect(text).to_have_text(re.compile(r"^… \d+ .* 599 $"))
    await expect(window.page.get_by_test_id("asked")).to_have_text("An earlier question")
    await window.page.get_by_role("button", name="Earlier questions").click()
    await expect(window.page.get_by_test_id("asked")).to_have_text("Count")
    await expect(text).to_have_text(re.compile(r"^0 1 2 .* 598 599 $"))
    assert window.faults == []


async def test_answer_page_fits_every_width_and_theme(
    shared_demo: Demo, browser: Browser, request: pytest.FixtureRequest
) -> None:
    shots = Path(request.config.rootpath) / "build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    window = await open_window(browser, shared_demo.url, "agent-1", PAGE, fragment="look")
    page = window.page
    await ask(page, POEM)
    await expect_text(page)
    for width, dark in product((390, 1440), (False, True)):
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme="dark" if dark else "light")
        assert await page.evaluate(OVERFLOW) <= 0, (width, dark)
        await page.screenshot(path=shots / f"answer-{'dark' if dark else 'light'}-{width}.png")
    assert window.faults == []
