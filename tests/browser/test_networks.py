"""The JavaScript client in Chromium and Firefox, where networks, services, tokens and pages go away and come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.browser.conftest import running_chromium
from tests.browser.firefox import Firefox, FirefoxPage
from tests.browser.plain_page import plain_page
from tests.browser.site import Site, site
from tests.browser.sleep import asleep
from tests.browser.tabs import AnyBrowser, Tab
from tests.stores import shared_redis
from tests.support import harness
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

START = """
import { Tidewire } from '/tidewire.js';
import '/collections/index.js';
const parameters = new URLSearchParams(location.search);
Object.assign(globalThis, { states: [], subscribed: [], tokens: 0, wokeAt: undefined, noticedAfter: undefined });
globalThis.client = new Tidewire(parameters.get('url'), {
  token: async () => (await fetch(`/token?user=ann&ttl=${(globalThis.tokens += 1) === 1 ? parameters.get('ttl') : 3600}`)).text(),
  backoffBase: 50, backoffCap: 500,
});
client.on('state', ({ state, reason }) => {
  states.push(`${state} ${reason}`);
  if (wokeAt && state === 'reconnecting') globalThis.noticedAfter ??= performance.now() - wokeAt;
});
for (const name of ['resume', 'visibilitychange']) {
  document.addEventListener(name, () => document.visibilityState === 'visible' && (globalThis.wokeAt = performance.now()));
}
globalThis.room = client.channel('room:1');
globalThis.list = room.list('chat.message');
room.on('subscribed', ({ recovered }) => subscribed.push(recovered ?? null));
client.connect().catch(() => {});
globalThis.done = true;
"""
WORKER = """
globalThis.seen = [];
const worker = new Worker(URL.createObjectURL(new Blob([`
  import { Tidewire } from '${location.origin}/tidewire.js';
  const { url, token } = ${JSON.stringify(Object.fromEntries(new URLSearchParams(location.search)))};
  const client = new Tidewire(url, { token });
  const room = client.channel('room:1');
  room.on('subscribed', () => postMessage('subscribed'));
  room.on('chat.message', ({ data }) => postMessage(data.text));
  client.connect();
`], { type: 'text/javascript' })), { type: 'module' });
worker.onmessage = ({ data }) => seen.push(data);
worker.onerror = ({ message }) => seen.push(`error ${message}`);
"""
NOTICED = 4_000
"""Milliseconds from waking until a dead connection is noticed: the client waits 1.8 s, and a busy machine is late."""
LIVE = "list.status === 'live' && JSON.stringify(list.items.map(({ data }) => data.text))"


@asynccontextmanager
async def proxied(server: harness.Running) -> AsyncIterator[tuple[Proxy, int]]:
    """A network to the service, and its port."""
    proxy = Proxy(port_of(server))
    try:
        yield proxy, await proxy.start()
    finally:
        await proxy.close()


@asynccontextmanager
async def opened(browser: AnyBrowser, page_site: Site, port: int, *, ttl: float = 3600) -> AsyncIterator[Tab]:
    """A page whose client is subscribed to `room:1`."""
    context = await browser.new_context()
    try:
        page = await context.new_page()
        await page.goto(f"{page_site.origin}/?url=ws://127.0.0.1:{port}/ws&ttl={ttl}")
        await page.wait_for_function("globalThis.done && subscribed.length")
        yield page
    finally:
        await context.close()


async def shows(page: Tab, *texts: str) -> None:
    """Waits until the list is complete, and has these messages."""
    await page.wait_for_function(f"(wanted) => {LIVE} === JSON.stringify(wanted)", arg=texts)


async def say(server: harness.Running, text: str) -> None:
    await server.publish("room:1", {"type": "chat.message", "data": {"text": text}})


def port_of(server: harness.Running) -> int:
    return int(server.url.rpartition(":")[2])


async def test_ten_seconds_without_a_network_lose_nothing(firefox: Firefox) -> None:
    """test_console.py does the same in Chromium."""
    async with (
        asyncio.timeout(60),
        site(START) as origin,
        harness.serving(origins=(origin.origin,)) as server,
        proxied(server) as (proxy, port),
        opened(firefox, origin, port) as page,
    ):
        await say(server, "before")
        await shows(page, "before")
        proxy.cut()
        await page.evaluate("room.publish('chat.message', { text: 'of the page' }, { id: 'm-1' }) && undefined")
        await say(server, "meanwhile")
        await asyncio.sleep(10)  # the length of the cut is what is tested
        assert await page.evaluate("client.state") == "reconnecting"
        proxy.heal()
        await shows(page, "before", "meanwhile", "of the page")
        assert await page.evaluate("subscribed") == [None, True]


@pytest.mark.parametrize("recovered", [True, False], ids=["redis", "memory"])
async def test_restarted_service_resumes_with_a_store_and_reloads_without_one(
    each_browser: AnyBrowser, recovered: bool
) -> None:
    redis = {"url": (await shared_redis()).url, "prefix": f"browser-{time.monotonic_ns()}"}
    async with asyncio.timeout(60), site(START) as origin, AsyncExitStack() as services:
        options: dict[str, Any] = {"origins": (origin.origin,), "broker_settings": redis if recovered else {}}
        server = await services.enter_async_context(harness.serving(**options))
        async with proxied(server) as (proxy, port), opened(each_browser, origin, port) as page:
            await say(server, "1")
            await shows(page, "1")
            await services.aclose()
            async with harness.serving(**options) as restarted:
                proxy.lead_to(port_of(restarted))
                await page.wait_for_function("subscribed.length === 2")
                await say(restarted, "2")
                await shows(page, *(["1", "2"] if recovered else ["2"]))
                assert await page.evaluate("subscribed") == [None, recovered]
                await page.evaluate("client.close()")


async def test_token_that_expires_while_the_machine_sleeps_is_renewed(each_browser: Browser | Firefox) -> None:
    deadlines: dict[str, Any] = {"expiry_notice": 0.1, "expiry_grace": 0.2}
    async with (
        asyncio.timeout(60),
        site(START) as origin,
        harness.serving(origins=(origin.origin,), deadlines=deadlines) as server,
        opened(each_browser, origin, port_of(server), ttl=4) as page,
    ):
        async with asleep(each_browser):
            await harness.eventually(lambda: not len(server.service.node.streams.registry))
            await say(server, "while it slept")
        await shows(page, "while it slept")
        assert await page.evaluate("[tokens, subscribed]") == [2, [None, True]]


async def test_dead_connection_is_noticed_soon_after_a_page_is_thawed(chromium: Browser) -> None:
    async with (
        asyncio.timeout(60),
        site(START) as origin,
        harness.serving(origins=(origin.origin,)) as server,
        proxied(server) as (proxy, port),
        plain_page(chromium, f"{origin.origin}/?url=ws://127.0.0.1:{port}/ws&ttl=3600") as page,
    ):
        await page.becomes("globalThis.subscribed?.length === 1")
        await page.evaluate("globalThis.events = []")
        for name in ("freeze", "resume"):
            await page.evaluate(f"document.addEventListener('{name}', () => events.push('{name}'))")
        await page.freeze()
        proxy.half_open("client")
        await say(server, "while it was frozen")
        thawed = time.monotonic()
        await page.thaw()
        await page.becomes("subscribed.length === 2")
        assert (time.monotonic() - thawed) * 1000 < NOTICED
        assert await page.evaluate("[events, subscribed]") == [["freeze", "resume"], [None, True]]


async def test_dead_connection_is_noticed_soon_after_a_tab_is_shown(firefox: Firefox) -> None:
    async with (
        asyncio.timeout(60),
        site(START) as origin,
        harness.serving(origins=(origin.origin,)) as server,
        proxied(server) as (proxy, port),
        opened(firefox, origin, port) as page,
    ):
        assert isinstance(page, FirefoxPage)
        other = await firefox.new_context()
        await (await other.new_page()).bring_to_front()
        await page.wait_for_function("document.visibilityState === 'hidden'")
        async with asleep(firefox):
            proxy.half_open("client")
            await say(server, "while it slept")
        await page.bring_to_front()
        await noticed(page, "while it slept")
        await other.close()


async def noticed(page: Tab, text: str) -> None:
    """The client asks its connection when it wakes, and waits 1.8 s. Without that it would notice after 35 s."""
    await shows(page, text)
    assert await page.evaluate("[states.at(-2), subscribed]") == ["reconnecting no_pong", [None, True]]
    assert await page.evaluate("noticedAfter") < NOTICED


async def test_page_from_the_back_forward_cache_resumes() -> None:
    """Firefox keeps no page with a WebSocket, and Playwright's usual arguments turn the cache of Chromium off."""
    async with (
        asyncio.timeout(60),
        site(START) as origin,
        harness.serving(origins=(origin.origin,)) as server,
        running_chromium(ignore=["--disable-back-forward-cache"]) as chromium,
        opened(chromium, origin, port_of(server)) as page,
    ):
        assert isinstance(page, Page)
        # What hears of the cache is loaded with `connect()`.
        await page.wait_for_function("client.explain().includes('\\n')")
        await page.goto(f"{origin.origin}/token?user=ann")
        await harness.eventually(lambda: not len(server.service.node.streams.registry))
        await say(server, "meanwhile")
        await page.go_back(wait_until="commit")  # no `load` follows
        await shows(page, "meanwhile")
        assert await page.evaluate("subscribed") == [None, True], "the page is the same"
        assert await page.evaluate("states.slice(2)") == ["reconnecting sleep", "reconnecting wake", "ready welcome"]


async def test_module_worker_gets_events(each_browser: AnyBrowser) -> None:
    async with asyncio.timeout(60), site(WORKER) as origin, harness.serving(origins=(origin.origin,)) as server:
        context = await each_browser.new_context()
        page = await context.new_page()
        await page.goto(f"{origin.origin}/?url=ws://127.0.0.1:{port_of(server)}/ws&token={harness.token()}")
        await page.wait_for_function("seen.length === 1")
        await say(server, "to the worker")
        await page.wait_for_function("seen.length === 2")
        assert await page.evaluate("seen") == ["subscribed", "to the worker"]
        await context.close()
