"""Tabs of one user that share a connection, in a real browser: the tab that has it is closed, killed, frozen, and hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Error, Page

from tests.browser.conftest import running_chromium
from tests.browser.firefox import Firefox, FirefoxPage
from tests.browser.plain_page import plain_page
from tests.browser.site import Site, site
from tests.browser.tabs import AnyBrowser, Context, Tab
from tests.support import harness
from tests.support.http_proxy import HttpProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

TAKEOVER = 2.0
"""Seconds in which the other tabs get the next event after the tab that leads has ended."""
TABS = 6
FAST = {name: {"per_second": 1000.0, "burst": 1000} for name in ("connection_rate", "user_rate")}
START = """
import { Tidewire } from '/tidewire.js';
const parameters = new URLSearchParams(location.search);
Object.assign(globalThis, { texts: [], acked: [], lost: [], states: [] });
globalThis.client = new Tidewire(parameters.get('url'), {
  token: async () => (await fetch(`/token?user=${parameters.get('user')}`)).text(),
  share: true,
});
client.on('state', ({ state, reason }) => states.push([state, reason]));
globalThis.room = client.channel('room:1');
room.on('chat.message', ({ data }) => texts.push(data.text));
room.on('subscribed', ({ recovered }) => recovered === false && lost.push(recovered));
globalThis.publish = (text) => room.publish('chat.message', { text }).then(() => acked.push(text));
client.connect();
globalThis.done = true;
"""
LEADS = "client.explain().includes('this tab has the connection')"
BLOCK = "() => { const end = performance.now() + 2_500; while (performance.now() < end); }"


@dataclass(slots=True)
class Scene:
    """A service that lets each user have one connection, and a site whose pages share it."""

    server: harness.Running
    site: Site
    context: Context
    url: str
    published: int = 0

    async def open(self, user: str = "ann") -> Tab:
        page = await self.context.new_page()
        await page.goto(self.address(user))
        await page.wait_for_function("globalThis.done")
        await page.evaluate("room.subscribed")
        return page

    def address(self, user: str) -> str:
        return f"{self.site.origin}/?user={user}&url={self.url}"

    async def publish(self) -> str:
        """Publishes as the backend, and returns the text."""
        self.published += 1
        text = f"b-{self.published}"
        await self.server.publish("room:1", {"type": "chat.message", "data": {"text": text}})
        return text

    async def texts(self) -> list[str]:
        """The stored events, oldest first."""
        async with self.server.client("reader") as reader:
            page = await reader.ask("history", channel="room:1", after=0, limit=1000)
            return [event["data"]["text"] for event in page["events"]]

    async def leader(self, pages: list[Tab]) -> Tab:
        for page in pages:
            if await page.evaluate(LEADS):
                return page
        raise AssertionError([await page.evaluate("client.explain()") for page in pages])

    async def taken_over(self, pages: list[Tab]) -> None:
        """Waits until one of these pages has the connection."""
        async with asyncio.timeout(20):
            while not [page for page in pages if await page.evaluate(LEADS)]:  # noqa: ASYNC110  # pages report no event
                await asyncio.sleep(0.02)

    async def seen(self, pages: list[Tab], text: str) -> None:
        """Waits until the pages have an event."""
        has = "(text) => texts.includes(text)"
        await asyncio.gather(*(page.wait_for_function(has, arg=text) for page in pages))

    async def connections(self) -> float:
        return await self.server.metric("connections")


@asynccontextmanager
async def scene(browser: AnyBrowser, tmp_path: Any) -> AsyncIterator[Scene]:
    contract = tmp_path / "contract.yaml"
    contract.write_text(harness.CONTRACT.read_text().replace("{events: 50, ttl: 1h}", "{events: 1000, ttl: 1h}", 1))
    limits = {"connections_per_user": 1, "on_user_cap": "replace", **FAST}
    async with (
        asyncio.timeout(60),
        site(START) as page,
        harness.serving(contract=contract, origins=(page.origin,), limits=limits) as server,
    ):
        context = await browser.new_context()
        if isinstance(context, BrowserContext):
            context.set_default_timeout(5_000)
        try:
            yield Scene(server, page, context, f"{server.url.replace('http', 'ws')}/ws")
        finally:
            await context.close()


async def end(how: str, page: Tab) -> None:
    """Ends the tab, or stops it."""
    if how == "closed":
        await page.close()
    elif how == "killed" and isinstance(page, FirefoxPage):
        await page.crash()
    elif how == "killed":
        assert isinstance(page, Page)
        session = await page.context.new_cdp_session(page)
        with suppress(Error, TimeoutError):
            async with asyncio.timeout(0.1):  # it has no answer
                await session.send("Page.crash")


async def test_tabs_share_a_connection_and_another_takes_over(browser: Browser, tmp_path: Any) -> None:
    async with scene(browser, tmp_path) as shown:
        pages = [await shown.open() for _ in range(TABS)]
        assert await shown.connections() == 1
        other = await shown.open("ben")
        assert await shown.connections() == 2
        await other.evaluate("publish('of ben')")
        assert await other.evaluate("[client.status.transport, acked]") == ["websocket", ["of ben"]]
        await other.close()
        await shown.seen(pages, "of ben")
        for how in ("closed", "killed", "hanging"):
            leader = await shown.leader(pages)
            others = [page for page in pages if page is not leader]
            for number, page in enumerate(others):
                await page.evaluate(f"for (let n = 0; n < 3; n += 1) publish(`{how}-{number}-${{n}}`)")
            blocked = asyncio.create_task(leader.evaluate(BLOCK)) if how == "hanging" else None
            started = time.monotonic()
            await end(how, leader)
            text = await shown.publish()
            await shown.seen(others, text)
            assert time.monotonic() - started < TAKEOVER, how
            for page in others:
                await page.wait_for_function("client.pending === 0")
            if blocked:
                await blocked
                back = (
                    "(text) => client.status.transport === 'shared' && client.state === 'ready' && texts.includes(text)"
                )
                await leader.wait_for_function(back, arg=text)
            pages = [*others, leader if blocked else await shown.open()]
            assert await shown.connections() == 1
        wanted = await shown.texts()
        assert len(set(wanted)) == len(wanted) == 1 + 3 * (1 + 3 * (TABS - 1))
        for page in pages:
            seen = await page.evaluate("({ texts, lost })")
            assert seen["texts"] == wanted[len(wanted) - len(seen["texts"]) :]
            assert seen["lost"] == []


async def test_tabs_of_firefox_share_a_connection_and_another_takes_over(firefox: Firefox, tmp_path: Any) -> None:
    async with scene(firefox, tmp_path) as shown:
        pages = [await shown.open() for _ in range(4)]
        assert await shown.connections() == 1
        for how in ("killed", "closed"):
            leader = await shown.leader(pages)
            pages = [page for page in pages if page is not leader]
            for number, page in enumerate(pages):
                await page.evaluate("(text) => void publish(text)", f"{how}-{number}")
            await end(how, leader)
            await shown.taken_over(pages)
            await shown.seen(pages, await shown.publish())
            for page in pages:
                await page.wait_for_function("client.pending === 0")
        assert await shown.connections() == 1
        wanted = await shown.texts()
        assert len(set(wanted)) == len(wanted) == 2 + 3 + 2
        for page in pages:
            await page.wait_for_function("(wanted) => JSON.stringify(texts) === JSON.stringify(wanted)", arg=wanted)
            assert await page.evaluate("lost") == []


async def test_tab_that_chromium_freezes_leaves_the_connection_to_another(browser: Browser, tmp_path: Any) -> None:
    async with scene(browser, tmp_path) as shown, AsyncExitStack() as opened:
        pages = []
        for _ in range(3):
            pages.append(await opened.enter_async_context(plain_page(browser, shown.address("ann"))))
            await pages[-1].becomes("globalThis.room?.state === 'subscribed'")
        frozen, *others = pages
        assert await frozen.evaluate(LEADS)
        await frozen.freeze()
        started = time.monotonic()
        text = await shown.publish()
        for page in others:
            await page.becomes(f"texts.includes('{text}')")
        assert time.monotonic() - started < TAKEOVER
        await frozen.thaw()
        await frozen.becomes(f"texts.includes('{text}') && client.status.transport === 'shared'")
        assert await shown.connections() == 1


async def test_tabs_share_a_stream_where_websockets_are_blocked(browser: Browser, tmp_path: Any) -> None:
    async with scene(browser, tmp_path) as shown:
        proxy = HttpProxy(int(shown.server.url.rpartition(":")[2]))
        proxy.upgrades = "refuse"
        shown.url = f"ws://127.0.0.1:{await proxy.start()}/ws"
        try:
            pages = [await shown.open() for _ in range(3)]
            assert await shown.server.metric("streams") == 1
            await pages[1].evaluate("publish('1')")
            await shown.seen(pages, "1")
            members = await pages[2].evaluate("room.members()")
            assert [member["user"] for member in members["members"]] == ["ann"]
            await pages[0].close()
            text = await shown.publish()
            await shown.seen(pages[1:], text)
            assert await pages[1].evaluate("texts") == await pages[2].evaluate("texts") == ["1", text]
            assert await shown.connections() == 1
        finally:
            await proxy.close()


async def test_pages_return_from_the_back_forward_cache(tmp_path: Any) -> None:
    async with (
        running_chromium(ignore=["--disable-back-forward-cache"]) as caching,
        scene(caching, tmp_path) as shown,
    ):
        pages = [await shown.open() for _ in range(3)]
        for page in pages[:2]:  # one that leads, one that follows
            assert isinstance(page, Page)
            await page.evaluate("addEventListener('pageshow', ({ persisted }) => (globalThis.returned = persisted))")
            await page.goto(f"{shown.site.origin}/token?user=ann")
            text = await shown.publish()
            await shown.seen(pages[2:], text)
            await page.go_back(wait_until="commit")  # no `load` follows
            await page.wait_for_function("globalThis.returned === true && client.state === 'ready'")
            await shown.seen([page], text)
        assert await shown.connections() == 1
