"""The outbox of the JavaScript client in a real browser: reloads, other users, other pages, clocks and broken databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Route

from tests.browser.site import Site, site
from tests.browser.tabs import AnyBrowser, Context, Tab
from tests.support import harness
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

MINUTE = 60_000
FAST = {name: {"per_second": 1000.0, "burst": 1000} for name in ("connection_rate", "user_rate")}

PUBLISH = """([from, to]) => {
  for (let n = from; n < to; n += 1) {
    const ack = client.publish('room:1', 'chat.message', { text: `${n}` }, { id: `m-${n}` });
    ack.then(() => acked.push(n), ({ code }) => failed.push(code));
  }
}"""
STATE = """() => ({
  state: client.state, user, pending: client.pending, acked, failed, published, errors,
  entries: client.outbox.entries.map(({ id, data }) => [id, data.text]),
  uncertain: client.outbox.uncertain.map(({ id }) => id),
})"""
START = """
import { Tidewire } from '/tidewire.js';
const parameters = new URLSearchParams(location.search);
const skew = Number(parameters.get('skew') ?? 0);
const now = Date.now;
Date.now = () => now() + skew;
Object.assign(globalThis, { acked: [], failed: [], published: [], errors: [], user: undefined });
globalThis.client = new Tidewire(parameters.get('url'), {
  token: async () => (await fetch(`/token?user=${globalThis.login ?? parameters.get('user')}`)).text(),
  backoffBase: 50, backoffCap: 100, outbox: globalThis.outbox ?? true,
});
client.on('welcome', (welcome) => (globalThis.user = welcome.user));
client.on('published', ({ id, ack }) => published.push([id, ack.offset]));
client.on('error', ({ code }) => errors.push(code));
client.connect().catch(() => {});
if (!parameters.has('lonely')) globalThis.room = client.channel('room:1');
globalThis.done = true;
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """A service behind a proxy, and a site of another origin whose pages use it."""

    server: harness.Running
    proxy: Proxy
    site: Site
    context: Context
    url: str

    async def open(self, user: str = "ann", *, page: Tab | None = None, skew: int = 0, more: str = "") -> Tab:
        """Opens the page for a user, in a new tab, or in that of another page."""
        page = page or await self.context.new_page()
        await page.goto(f"{self.site.origin}/?user={user}&url={self.url}&skew={skew}{more}")
        await page.wait_for_function("globalThis.done")
        return page

    async def open_subscribed(self) -> Tab:
        """Opens the page in a new tab, and waits until it is subscribed."""
        page = await self.open()
        await ready_user(page)
        return page

    async def texts(self) -> list[str]:
        """The stored events, oldest first."""
        async with self.server.client("reader") as reader:
            after, found = 0, list[str]()
            while True:
                page = await reader.ask("history", channel="room:1", after=after, limit=1000)
                found += [event["data"]["text"] for event in page["events"]]
                if not page["more"]:
                    return found
                after = page["events"][-1]["offset"]


async def settled(page: Tab) -> dict[str, Any]:
    """Waits until nothing is pending, and returns what the page has seen."""
    await page.wait_for_function("client.state === 'ready' && client.pending === 0")
    return await state(page)


async def state(page: Tab) -> dict[str, Any]:
    found: dict[str, Any] = await page.evaluate(STATE)
    return found


async def log_in(page: Tab, user: str) -> None:
    """Closes the client, and connects it again as this user."""
    await page.evaluate("(user) => { client.close(); globalThis.login = user; client.connect(); }", user)


async def ready_user(page: Tab) -> None:
    """Waits until the user is known, and subscribed."""
    await page.evaluate("room.subscribed")


async def stored(page: Tab, count: int) -> None:
    """Waits until the database has that many publishes. `wait_for_function` would not await the answer of the database."""
    await page.evaluate(
        """async (count) => {
          const counted = async () => {
            const database = await new Promise((resolve) => {
              const request = indexedDB.open('tidewire-outbox', 1);
              request.onsuccess = () => resolve(request.result);
              request.onupgradeneeded = () => request.transaction.abort();
              request.onerror = () => resolve(undefined);
            });
            if (!database) return undefined;
            const found = await new Promise((resolve) => {
              const request = database.transaction('publishes').objectStore('publishes').count();
              request.onsuccess = () => resolve(request.result);
            });
            database.close();
            return found;
          };
          const deadline = performance.now() + 20_000;
          for (let found = await counted(); found !== count; found = await counted()) {
            if (performance.now() > deadline) {
              throw new Error(`the database has ${found} publishes, not ${count}; errors: ${errors}`);
            }
            await new Promise((resolve) => setTimeout(resolve, 10));
          }
        }""",
        count,
    )


@asynccontextmanager
async def scene(browser: AnyBrowser, tmp_path: Any) -> AsyncIterator[Scene]:
    contract = tmp_path / "contract.yaml"
    contract.write_text(harness.CONTRACT.read_text().replace("{events: 50, ttl: 1h}", "{events: 1000, ttl: 1h}", 1))
    async with (
        asyncio.timeout(60),
        site(START) as page,
        harness.serving(contract=contract, origins=(page.origin,), limits=FAST) as server,
    ):
        proxy = Proxy(int(server.url.rpartition(":")[2]))
        context = await browser.new_context()
        try:
            yield Scene(server, proxy, page, context, f"ws://127.0.0.1:{await proxy.start()}/ws")
        finally:
            await context.close()
            await proxy.close()


async def test_200_events_published_offline_are_stored_once_and_in_order_after_a_reload(
    tmp_path: Any, each_browser: AnyBrowser
) -> None:
    async with scene(each_browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        await page.evaluate(PUBLISH, [0, 3])
        assert (await settled(page))["acked"] == [0, 1, 2]
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [3, 203])
        await stored(page, 200)

        await shown.open(page=page)  # the network is still away
        assert (await state(page))["entries"] == []  # nobody knows who is logged in
        await page.evaluate(PUBLISH, [203, 205])
        shown.proxy.heal()
        await page.wait_for_function("acked.length === 2")
        seen = await settled(page)
        assert set(seen["errors"]) <= {"unreachable"}
        assert [id for id, _ in seen["published"]] == [f"m-{n}" for n in range(3, 203)]
        assert await shown.texts() == [f"{n}" for n in range(205)]
        await stored(page, 0)


async def test_outbox_that_is_loaded_after_the_connection_was_lost_stores_publishes(
    tmp_path: Any, browser: Browser
) -> None:
    async with scene(browser, tmp_path) as shown:
        cut = asyncio.Event()

        async def hold(route: Route) -> None:
            await cut.wait()
            await route.continue_()

        assert isinstance(shown.context, BrowserContext)
        await shown.context.route("**/outbox/outbox.js", hold)
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        cut.set()
        await page.evaluate(PUBLISH, [0, 2])
        await stored(page, 2)


async def test_reload_in_the_middle_of_sending_stores_each_event_once(tmp_path: Any, each_browser: AnyBrowser) -> None:
    async with scene(each_browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.stall()
        await page.evaluate(PUBLISH, [0, 60])
        await stored(page, 60)
        shown.proxy.resume()
        await page.wait_for_function("acked.length >= 5")
        await shown.open(page=page)
        await ready_user(page)
        await stored(page, 0)
        assert await shown.texts() == [f"{n}" for n in range(60)]


async def test_other_user_after_a_reload_neither_sees_nor_sends_the_entries(
    tmp_path: Any, each_browser: AnyBrowser
) -> None:
    async with scene(each_browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [0, 5])
        await stored(page, 5)
        shown.proxy.heal()

        await shown.open("ben", page=page)
        await ready_user(page)
        await page.evaluate(PUBLISH, [5, 6])
        seen = await settled(page)
        assert (seen["entries"], seen["uncertain"], seen["published"]) == ([], [], [])
        assert await shown.texts() == ["5"]
        await stored(page, 5)

        await shown.open(page=page)
        await page.wait_for_function("published.length === 5")
        assert await shown.texts() == ["5", *(f"{n}" for n in range(5))]


async def test_new_login_in_the_same_client_does_not_send_what_the_first_user_has_published(
    tmp_path: Any, browser: Browser
) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [0, 2])
        await page.wait_for_function("client.outbox.entries.length === 2")
        await log_in(page, "ben")
        shown.proxy.heal()
        await page.wait_for_function("client.state === 'ready'")
        await page.evaluate(PUBLISH, [2, 3])
        await page.wait_for_function("acked.length === 1")
        seen = await state(page)
        assert (seen["user"], seen["failed"], seen["published"]) == ("ben", ["in_outbox"] * 2, [])
        assert (seen["entries"], seen["uncertain"], seen["pending"]) == ([], [], 0)
        await log_in(page, "ann")
        await page.wait_for_function("published.length === 2")
        assert (await state(page))["user"] == "ann"
        assert await shown.texts() == ["2", "0", "1"]


@pytest.mark.parametrize("minutes", [10, -10])
async def test_entry_that_was_sent_too_long_ago_or_at_an_unknown_time_is_uncertain(
    tmp_path: Any, browser: Browser, minutes: int
) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.black_hole()
        await page.evaluate(PUBLISH, [0, 1])  # sent, and lost
        await stored(page, 1)
        shown.proxy.heal()

        await shown.open(page=page, skew=minutes * MINUTE)
        await page.wait_for_function("client.outbox.uncertain.length === 1")
        seen = await state(page)
        assert (seen["uncertain"], seen["entries"], seen["pending"], seen["errors"]) == (["m-0"], [], 1, ["uncertain"])
        assert await shown.texts() == []

        await shown.open(page=page)  # the clock is right again, but the entry stays what it is
        await page.wait_for_function("client.outbox.uncertain.length === 1")
        ack = await page.evaluate("client.outbox.uncertain[0].retry()")
        assert ack["offset"] == 1
        assert await shown.texts() == ["0"]
        await stored(page, 0)


async def test_uncertain_entry_can_be_discarded(tmp_path: Any, browser: Browser) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.black_hole()
        await page.evaluate(PUBLISH, [0, 1])
        await stored(page, 1)
        shown.proxy.heal()
        await shown.open(page=page, skew=10 * MINUTE)
        await page.wait_for_function("client.outbox.uncertain.length === 1")
        await page.evaluate("client.outbox.uncertain[0].discard()")
        assert (await state(page))["pending"] == 0
        await stored(page, 0)
        assert await shown.texts() == []


async def test_two_pages_share_the_entries_of_a_third_that_has_closed(tmp_path: Any, browser: Browser) -> None:
    async with scene(browser, tmp_path) as shown:
        first, second, third = [await shown.open() for _ in range(3)]
        for page in (first, second, third):
            await ready_user(page)
        shown.proxy.cut()
        for page, (start, end) in ((first, (0, 10)), (second, (10, 20)), (third, (20, 30))):
            await page.wait_for_function("client.state !== 'ready'")
            await page.evaluate(PUBLISH, [start, end])
        await stored(first, 30)
        await third.close()
        shown.proxy.heal()
        await stored(first, 0)
        seen = [await settled(page) for page in (first, second)]
        assert [page["acked"] for page in seen] == [list(range(10)), list(range(10, 20))]
        assert sum(len(page["published"]) for page in seen) == 10
        texts = await shown.texts()
        assert sorted(texts, key=int) == [f"{n}" for n in range(30)]
        assert [text for text in texts if int(text) >= 20] == [f"{n}" for n in range(20, 30)]


async def test_entries_of_a_channel_that_needs_a_subscription_wait_for_it(tmp_path: Any, browser: Browser) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [0, 2])
        await stored(page, 2)
        shown.proxy.heal()
        await shown.open(page=page, more="&lonely=1")
        await page.wait_for_function("client.outbox.entries.length === 2")
        await page.evaluate("client.channel('room:1') && undefined")
        await settled(page)
        assert await shown.texts() == ["0", "1"]


async def test_entries_of_others_are_removed_when_they_are_too_old(tmp_path: Any, browser: Browser) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [0, 2])
        await stored(page, 2)
        shown.proxy.heal()
        await shown.open("ben", page=page, skew=8 * 24 * 60 * MINUTE)
        await stored(page, 0)


async def test_entries_of_all_others_together_are_bounded(tmp_path: Any, browser: Browser) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [0, 1])
        await stored(page, 1)
        await page.evaluate(
            """() => new Promise((resolve) => {
              const request = indexedDB.open('tidewire-outbox', 1);
              request.onsuccess = () => {
                const transaction = request.result.transaction('publishes', 'readwrite');
                const store = transaction.objectStore('publishes');
                store.getAll().onsuccess = ({ target }) => {
                  const [{ seq, ...record }] = target.result;
                  for (let n = 1; n < 20; n += 1) store.add({ ...record, user: `user-${n}`, at: record.at + n });
                };
                transaction.oncomplete = resolve;
              };
            })"""
        )
        shown.proxy.heal()
        await shown.context.add_init_script("globalThis.outbox = { maxEntries: 1 }")
        await shown.open("ben", page=page)
        await stored(page, 8)


@pytest.mark.parametrize(
    "fault",
    [
        "Object.defineProperty(globalThis, 'indexedDB', { value: undefined })",
        "IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); }",
        "IDBFactory.prototype.open = () => { const request = {}; setTimeout(() => request.onblocked()); return request; }",
        "IDBObjectStore.prototype.add = () => { throw new DOMException('full', 'QuotaExceededError'); }",
        "globalThis.outbox = { maxEntries: 1 }",
    ],
    ids=["none", "private", "blocked", "quota", "full"],
)
async def test_without_a_usable_database_publishing_goes_on_and_the_fault_is_reported(
    tmp_path: Any, browser: Browser, fault: str
) -> None:
    async with scene(browser, tmp_path) as shown:
        await shown.context.add_init_script(fault)
        page = await shown.open()
        await page.evaluate(PUBLISH, [0, 3])
        seen = await settled(page)
        assert seen["acked"] == [0, 1, 2]
        assert seen["errors"] in (["outbox_unavailable"], ["outbox_full"])
        assert await shown.texts() == ["0", "1", "2"]


async def test_entries_hold_no_token(tmp_path: Any, browser: Browser) -> None:
    async with scene(browser, tmp_path) as shown:
        page = await shown.open_subscribed()
        shown.proxy.cut()
        await page.wait_for_function("client.state !== 'ready'")
        await page.evaluate(PUBLISH, [0, 1])
        await stored(page, 1)
        records = await page.evaluate(
            """() => new Promise((resolve) => {
              const request = indexedDB.open('tidewire-outbox', 1);
              request.onsuccess = () => {
                const all = request.result.transaction('publishes').objectStore('publishes').getAll();
                all.onsuccess = () => resolve(all.result);
              };
            })"""
        )
        assert [record.keys() for record in records] == [
            {"seq", "service", "user", "id", "text", "at", "maySent", "uncertain", "owner"}
        ]
        assert records[0]["service"] == shown.url
        assert records[0]["text"] == '{"type":"chat.message","id":"m-0","channel":"room:1","data":{"text":"0"}}'
