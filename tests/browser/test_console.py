"""The support console in a real browser: two agents talk, one loses its network and misses nothing."""

from __future__ import annotations

import asyncio
import re
from itertools import product
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.conftest import Demo, open_window
from tests.browser.tabs import becomes

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

OUTAGE = 6.0
"""Seconds without a network: more than `deadlines.presence_leave`, after which the agent has left for the others."""

CLOSE_FOCUSED_CHAT = """async () => {
  const { chats, arrange } = await import(new URL('queue.js', document.querySelector('script[type=module]').src));
  const { chat } = document.activeElement.dataset;
  chats.set(chat, { ...chats.get(chat), status: 'closed' });
  arrange();
}"""

OVERLAPS = """names => {
  const all = (name) => [...document.querySelectorAll(name)].filter((one) => one.checkVisibility());
  const boxes = names.flatMap((name) => all(name).map((one) => ({ name, box: one.getBoundingClientRect() })));
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return boxes.flatMap((a, n) => boxes.slice(n + 1).filter((b) => meet(a.box, b.box)).map((b) => `${a.name} ${b.name}`));
}"""
COUNTS = """() => {
  const of = (name) => Number(/\\d+/.exec(document.querySelector(name).textContent)?.[0] ?? 0);
  return [of('#queue-count'), of('[data-metric=waiting] [data-testid=metric-value]'), of('[data-testid=tab-waiting]'),
          of('[data-group=waiting] .count')];
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


async def test_two_agents_exchange_chat_typing_and_presence(shared_demo: Demo, browser: Browser) -> None:
    one, two = [await open_window(browser, shared_demo.url, user) for user in ("agent-1", "agent-2")]
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


async def test_seconds_without_a_network_lose_and_repeat_nothing(shared_demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, shared_demo.proxied, "agent-1")
    two = await open_window(browser, shared_demo.url, "agent-2")
    chat = await first_chat(one.page)
    await open_chat(one.page, chat)
    await open_chat(two.page, chat)
    await write(two.page, "before the outage")
    await expect(line(one.page, "before the outage")).to_have_count(1)

    shared_demo.proxy.cut()
    outage = asyncio.create_task(asyncio.sleep(OUTAGE))
    await expect(one.page.get_by_test_id("connection")).not_to_contain_text("Online")
    await write(one.page, "written while offline")
    for number in range(8):
        await write(two.page, f"during the outage {number}")
        await expect(line(two.page, f"during the outage {number}")).to_have_count(1)
    await outage
    assert await line(one.page, "during the outage 0").count() == 0
    shared_demo.proxy.heal()

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
    assert shared_demo.proxy.refused > 0
    assert one.faults == two.faults == []


async def test_open_page_shows_a_backend_publish(shared_demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, shared_demo.url, "agent-1")
    await open_chat(window.page, "1")
    key = (shared_demo.folder / ".tidewire" / "api-key").read_text()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as backend,
        backend.post(
            f"{shared_demo.url}/api/v1/channels/room:1/events",
            json={"type": "chat.message", "data": {"text": "hello from the backend"}},
        ) as answer,
    ):
        assert answer.status == 200
    await expect(line(window.page, "hello from the backend")).to_have_count(1)
    assert window.faults == []


async def test_board_updates_without_a_reload(shared_demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, shared_demo.url, "agent-1")
    values = window.page.get_by_test_id("metric-value")
    await expect(values.first).not_to_have_text("–")
    seen = {tuple(await values.all_inner_texts())}
    async with asyncio.timeout(20):
        while len(seen) < 3:
            await window.page.wait_for_timeout(250)
            seen.add(tuple(await values.all_inner_texts()))
    assert window.faults == []


async def test_no_width_or_theme_overflows(shared_demo: Demo, browser: Browser, request: pytest.FixtureRequest) -> None:
    shots = Path(request.config.rootpath) / "build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    window = await open_window(browser, shared_demo.url, "agent-1")
    page = window.page
    await page.get_by_test_id("queue-item").first.click()
    for width, dark in product((390, 900, 1440), (False, True)):
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme="dark" if dark else "light")
        await expect(page.get_by_test_id("composer")).to_be_visible()
        overflow = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, (width, dark)
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(ground.split("(")[1].split(",")[0])
        assert (red < 80) if dark else (red > 200), (width, dark, ground)
        await page.screenshot(path=shots / f"{'dark' if dark else 'light'}-{width}.png")
    assert window.faults == []


async def test_console_works_by_keyboard(shared_demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, shared_demo.url, "agent-1")
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


async def test_narrow_header_and_toast_cover_nothing(shared_demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, shared_demo.url, "agent-1", width=390)
    page = one.page
    chat = await first_chat(page)
    await open_chat(page, chat)
    for user in ("agent-2", "agent-3"):
        other = await open_window(browser, shared_demo.url, user)
        await open_chat(other.page, chat)
    await expect(page.get_by_test_id("presence-member")).to_have_count(3)
    key = (shared_demo.folder / ".tidewire" / "api-key").read_text()
    item = {"kind": "assigned", "chat": chat, "customer": "Maya", "text": "Maya was assigned to you"}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as backend,
        backend.post(
            f"{shared_demo.url}/api/v1/channels/inbox:agent-1/events", json={"type": "inbox.item", "data": item}
        ) as answer,
    ):
        assert answer.status == 200
    toast = page.get_by_test_id("toast").filter(has_text="Maya was assigned to you")
    await expect(toast).to_be_visible()
    parts = ["#back", "#chat-title", ".status", "#presence", "#actions button", "#send", ".toast"]
    assert await page.evaluate(OVERLAPS, parts) == []
    await toast.get_by_role("button", name="Dismiss").click()
    await expect(toast).to_have_count(0)
    assert one.faults == []


async def test_first_visit_explains_itself_and_reload_keeps_the_tick(shared_demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, shared_demo.proxied, "agent-1")
    page = one.page
    await expect(page.locator("#chat-empty")).to_contain_text("you are one of its agents")
    await page.locator('[data-testid="queue-item"][data-status="waiting"]').first.wait_for()
    await becomes(
        page, f"() => {{ const all = ({COUNTS})(); return all[0] > 0 && all.every((one) => one === all[0]); }}"
    )
    await page.get_by_test_id("open-first").click()
    await write(page, "This keeps its tick")
    said = page.get_by_test_id("message").filter(has=line(page, "This keeps its tick"))
    await expect(said.locator(".delivery")).to_contain_text("Sent")
    await page.reload()
    await expect(said.locator(".delivery")).to_contain_text("Sent")
    assert re.fullmatch(r"[1-9]\d?:\d\d", await said.locator("time").inner_text())
    chat = (await page.evaluate("location.hash")).removeprefix("#")
    assert chat not in await page.locator("#chat-about").inner_text()

    buttons = page.locator("#actions button")
    await expect(buttons.first).to_be_enabled()
    green = "getComputedStyle(document.querySelector('.team .avatar'), '::after').backgroundColor"
    online = await page.evaluate(green)
    shared_demo.proxy.cut()
    await expect(buttons.first).to_be_disabled()
    assert await page.evaluate(green) != online
    shared_demo.proxy.heal()
    await expect(buttons.first).to_be_enabled()
    assert await page.evaluate(green) == online
    assert one.faults == []
