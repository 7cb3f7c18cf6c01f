"""The support console in a real browser: two agents talk, one loses its network and misses nothing."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.conftest import Demo, open_window

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

OUTAGE = 6.0
"""Seconds without a network: more than `deadlines.presence_leave`, after which the agent has left for the others."""

CLOSE_FOCUSED_CHAT = """async () => {
  const { chats, arrange } = await import(new URL('queue.js', document.querySelector('script[type=module]').src));
  const { chat } = document.activeElement.dataset;
  chats.set(chat, { ...chats.get(chat), status: 'closed' });
  arrange();
}"""


async def open_chat(page: Page, chat: str) -> None:
    await page.locator(f'[data-testid="queue-item"][data-chat="{chat}"]').click()
    await expect(page.get_by_test_id("composer")).to_be_enabled()


async def write(page: Page, text: str) -> None:
    await page.get_by_test_id("composer").fill(text)
    await page.get_by_test_id("composer").press("Enter")


def line(page: Page, text: str) -> Locator:
    return page.get_by_test_id("message-text").get_by_text(text, exact=True)


async def first_chat(page: Page) -> str:
    item = page.get_by_test_id("queue-item").first
    await item.wait_for()
    chat = await item.get_attribute("data-chat")
    assert chat
    return chat


async def test_two_agents_exchange_chat_typing_and_presence(demo: Demo, browser: Browser) -> None:
    one, two = [await open_window(browser, demo.url, user) for user in ("agent-1", "agent-2")]
    chat = await first_chat(one.page)
    await open_chat(one.page, chat)
    await open_chat(two.page, chat)

    await expect(one.page.locator('[data-testid="presence-member"][data-user="agent-2"]')).to_be_visible()
    await expect(two.page.locator('[data-testid="presence-member"][data-user="agent-1"]')).to_be_visible()

    await two.page.get_by_test_id("composer").press_sequentially("I have ", delay=20)
    await expect(one.page.get_by_test_id("typing")).to_contain_text("Agent 2")
    await write(two.page, "I have an idea about this one")
    await expect(line(one.page, "I have an idea about this one")).to_have_count(1)
    await write(one.page, "Tell me")
    await expect(line(two.page, "Tell me")).to_have_count(1)
    await expect(line(one.page, "Tell me")).to_have_count(1)

    await two.page.context.close()
    await expect(one.page.locator('[data-testid="presence-member"][data-user="agent-2"]')).to_have_count(
        0, timeout=15_000
    )
    assert one.faults == two.faults == []


async def test_seconds_without_a_network_lose_and_repeat_nothing(demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, demo.proxied, "agent-1")
    two = await open_window(browser, demo.url, "agent-2")
    chat = await first_chat(one.page)
    await open_chat(one.page, chat)
    await open_chat(two.page, chat)
    await write(two.page, "before the outage")
    await expect(line(one.page, "before the outage")).to_have_count(1)

    demo.proxy.cut()
    outage = asyncio.create_task(asyncio.sleep(OUTAGE))
    await expect(one.page.get_by_test_id("connection")).not_to_contain_text("Online")
    await write(one.page, "written while offline")
    for number in range(8):
        await write(two.page, f"during the outage {number}")
        await expect(line(two.page, f"during the outage {number}")).to_have_count(1)
    await outage
    assert await line(one.page, "during the outage 0").count() == 0
    demo.proxy.heal()

    await expect(one.page.get_by_test_id("connection")).to_contain_text("Online", timeout=30_000)
    for number in range(8):
        await expect(line(one.page, f"during the outage {number}")).to_have_count(1)
    await expect(line(two.page, "written while offline")).to_have_count(1)
    texts = [
        text
        for text in await one.page.get_by_test_id("message-text").all_inner_texts()
        if text.startswith("during the outage")
    ]
    assert texts == [f"during the outage {number}" for number in range(8)], "all, once, in order"
    assert await line(one.page, "written while offline").count() == 1
    assert demo.proxy.refused > 0
    assert one.faults == two.faults == []


async def test_open_page_shows_a_backend_publish(demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, demo.url, "agent-1")
    await open_chat(window.page, "1")
    key = (demo.folder / ".tidewire" / "api-key").read_text()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as backend,
        backend.post(
            f"{demo.url}/api/v1/channels/room:1/events",
            json={"type": "chat.message", "data": {"text": "hello from the backend"}},
        ) as answer,
    ):
        assert answer.status == 200
    await expect(line(window.page, "hello from the backend")).to_have_count(1)
    assert window.faults == []


async def test_board_updates_without_a_reload(demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, demo.url, "agent-1")
    values = window.page.get_by_test_id("metric-value")
    await expect(values.first).not_to_have_text("–")
    seen = {tuple(await values.all_inner_texts())}
    async with asyncio.timeout(20):
        while len(seen) < 3:
            await window.page.wait_for_timeout(250)
            seen.add(tuple(await values.all_inner_texts()))
    assert window.faults == []


async def test_no_width_or_theme_overflows(demo: Demo, browser: Browser, request: pytest.FixtureRequest) -> None:
    shots = Path(request.config.rootpath) / "build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    for width, dark in product((390, 900, 1440), (False, True)):
        window = await open_window(browser, demo.url, "agent-1", dark=dark, width=width)
        page = window.page
        await page.get_by_test_id("queue-item").first.click()
        await expect(page.get_by_test_id("composer")).to_be_visible()
        overflow = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, (width, dark)
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(ground.split("(")[1].split(",")[0])
        assert (red < 80) if dark else (red > 200), (width, dark, ground)
        await page.screenshot(path=shots / f"{'dark' if dark else 'light'}-{width}.png")
        assert window.faults == []
        await page.context.close()


async def test_console_works_by_keyboard(demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, demo.url, "agent-1")
    page = window.page
    await page.get_by_test_id("queue-item").first.wait_for()
    await page.keyboard.press("/")
    await expect(page.get_by_test_id("search")).to_be_focused()
    await page.keyboard.press("Escape")
    await page.get_by_test_id("queue-item").nth(1).wait_for()
    await page.get_by_test_id("queue-item").first.focus()
    first = await page.evaluate("document.activeElement.dataset.chat")
    await page.keyboard.press("ArrowDown")
    await expect(page.locator(f".row:focus:not([data-chat='{first}'])")).to_have_count(1)
    # Chats are claimed and closed meanwhile: the focus stays in the list.
    await page.evaluate(CLOSE_FOCUSED_CHAT)
    await expect(page.locator(".row:focus")).to_have_count(1)
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("composer")).to_be_visible()
    await page.get_by_test_id("composer").focus()
    await page.keyboard.type("first line")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("second line")
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("message-text").filter(has_text="second line")).to_have_count(1)
    assert window.faults == []
