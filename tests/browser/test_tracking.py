"""Delivery tracking in a real browser: who comes late sees everything, a lost phone, and seconds without a network."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect
from tidewire import AsyncTidewire

from tests.browser.conftest import Demo, open_window
from tests.browser.tabs import becomes

pytestmark = [pytest.mark.browser, pytest.mark.demos, pytest.mark.asyncio(loop_scope="session")]

CHANNEL = "delivery:old-town"
COURIERS = 6
VIEW = "Number(document.querySelector('#town').getAttribute('viewBox').split(' ')[2])"
"""The width of the map's view."""


async def test_late_visitor_sees_couriers_orders_and_steps_at_once(demo: Demo, browser: Browser) -> None:
    one = await open_window(browser, demo.url, "agent-1", "tracking")
    couriers = one.page.get_by_test_id("courier")
    await expect(couriers).to_have_count(COURIERS)
    await becomes(
        one.page,
        """() => {
          const places = [...document.querySelectorAll('.courier')].map(({ style }) => style.transform).join();
          return (globalThis.before ??= places) !== places;
        }""",
    )
    # An order that a courier has: it is open for a while yet.
    open_order = one.page.locator("#orders li", has=one.page.locator('[data-status="accepted"]')).first
    number = await open_order.locator(".id").inner_text()
    await open_order.locator("button").click()
    await expect(one.page.get_by_test_id("timeline").locator('[data-done="true"]').first).to_contain_text("Accepted")

    late = await open_window(browser, f"{demo.url}", "agent-2", "tracking", dark=True, width=390)
    await expect(late.page.get_by_test_id("courier")).to_have_count(COURIERS)
    await late.page.locator("#orders li", has_text=number).locator("button").click()
    await expect(late.page.get_by_test_id("timeline").locator('[data-done="true"]').first).to_contain_text("Accepted")

    await one.page.reload()
    await expect(one.page.get_by_test_id("details").locator("h2")).to_have_text(number)

    await one.page.get_by_test_id("filter").get_by_text("Delivered").click()
    await expect(one.page.locator('#orders [data-status="accepted"]')).to_have_count(0)
    await expect(one.page.locator('#orders [data-status="delivered"]').first).to_be_visible()

    await couriers.first.focus()
    await one.page.keyboard.press("Enter")
    await becomes(one.page, f"{VIEW} < 700")
    await one.page.keyboard.press("Escape")
    await becomes(one.page, f"{VIEW} > 1000")
    assert one.faults == late.faults == []


async def test_lost_phone_and_lost_network_show_the_age_of_positions(demo: Demo, browser: Browser) -> None:
    window = await open_window(browser, demo.proxied, "agent-1", "tracking")
    await expect(window.page.get_by_test_id("courier")).to_have_count(COURIERS)
    key = (demo.folder / ".tidewire" / "api-key").read_text().strip()
    zoe = window.page.locator('[data-courier="zoe"]')
    async with AsyncTidewire(demo.url, api_key=key) as backend:
        position = {"courier": "zoe", "name": "Zoe", "vehicle": "bike", "x": 600, "y": 400, "heading": 0}
        await backend.publish(CHANNEL, "courier.phone", {"courier": "zoe", "battery": 50})
        await backend.publish(CHANNEL, "courier.position", {**position, "path": [[600, 400]]})
        await expect(zoe).to_contain_text("Zoe")
        # Its phone is silent from now on.
        await expect(zoe).to_contain_text("last seen")
        await backend.publish(CHANNEL, "courier.phone", {"courier": "zoe", "battery": 49})
        await expect(zoe).not_to_contain_text("last seen")
        await backend.remove_value(CHANNEL, "courier.position", "zoe")
        await expect(zoe).to_have_count(0)

    demo.proxy.cut()
    notice = window.page.get_by_test_id("notice")
    await expect(notice).to_contain_text("The positions are")
    demo.proxy.heal()
    await expect(window.page.get_by_test_id("connection")).to_contain_text("Online")
    await expect(notice).to_be_hidden()
    await expect(window.page.get_by_test_id("courier")).to_have_count(COURIERS)
    assert window.faults == []
