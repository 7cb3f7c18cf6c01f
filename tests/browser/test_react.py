"""`tidewire/react` in a real browser: React 18 and 19 under StrictMode, against a real service. And the README's examples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, WebSocket, expect

from tests.browser.firefox import Firefox
from tests.support import harness

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

BUILD = Path(__file__).parents[2] / "clients" / "js" / "test" / "react" / "build.js"
HTML = """<!doctype html><link rel="icon" href="data:,"><div id="root"></div><script>
  globalThis.config = %s, globalThis.shown = {};
  const showMessages = (...values) => (shown.messages = values);
  const showMembers = ({ members }) => (shown.members = members.map(({ user }) => user));
  const showMetric = (value) => (shown.metric = value);
</script><script type="module" src="/%s.js"></script>"""
CONTRACT = """
channels:
  "room:{room}":
    subscribe: grant
    presence: true
    history: {events: 100, ttl: 1h}
    events:
      chat.message: {publish: subscriber, delivery: durable, schema: {type: object, required: [text]}}
  "desk:{desk}":
    subscribe: authenticated
    presence: {update: {publish: subscriber, schema: {type: object}}}
  "doc:{doc}":
    subscribe: authenticated
    events:
      doc.cursor: {publish: server, delivery: latest, key: /user, removable: true, schema: {type: object, required: [user]}}
  "board:{board}":
    subscribe: authenticated
    events:
      board.metric: {publish: server, delivery: latest, key: /metric, schema: {type: object, required: [metric]}}
"""


@dataclass
class Window:
    """A page with the requests that its client sends, and what React and the page complain about."""

    page: Page
    sent: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def count(self, kind: str, channel: str) -> int:
        return sum(message["type"] == kind and message.get("channel") == channel for message in self.sent)

    def frame(self, text: str | bytes) -> None:
        content = json.loads(text)
        self.sent.extend(content if isinstance(content, list) else [content])

    async def texts(self) -> list[list[str]]:
        """The messages that each room shows."""
        rooms: list[list[str]] = await self.page.evaluate(
            "Array.from(document.querySelectorAll('[data-testid=room]'),"
            " (room) => Array.from(room.querySelectorAll('li'), (line) => line.textContent))"
        )
        return rooms


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Serves the built pages; the service's address is filled in later."""
    config = {"url": "", "token": ""}

    async def page(request: web.Request) -> web.Response:
        user = request.query["user"]
        body = HTML % (json.dumps({**config, "token": harness.token(user)}), request.match_info["name"])
        return web.Response(text=body, content_type="text/html")

    async def script(request: web.Request) -> web.Response:
        code = (folder / f"{request.match_info['name']}.js").read_text(encoding="utf-8")
        text = code.replace('"/ws"', json.dumps(config["url"])).replace("'/ws'", json.dumps(config["url"]))
        return web.Response(text=text, content_type="text/javascript")

    async def token(_request: web.Request) -> web.Response:
        return web.Response(text=harness.token("reader"))

    application = web.Application()
    application.add_routes(
        [web.get("/my-token", token), web.get("/{name}.js", script), web.get("/{name}", page)],
    )
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", config
    finally:
        await runner.cleanup()


async def open_window(browser: Browser, address: str) -> Window:
    window = Window(await browser.new_page())
    window.page.on("pageerror", lambda error: window.faults.append(str(error)))
    window.page.on(
        "console", lambda message: window.faults.append(message.text) if message.type in ("error", "warning") else None
    )

    def opened(socket: WebSocket) -> None:
        socket.on("framesent", window.frame)

    window.page.on("websocket", opened)
    await window.page.goto(address)
    return window


async def subscribers(server: harness.Running, channel: str) -> int:
    """The number of subscribers of a channel, as the service says."""
    headers = {"Authorization": f"Bearer {harness.API_KEY}"}
    async with server.http.get(f"{server.url}/api/v1/channels/{channel}", headers=headers) as response:
        count: int = (await response.json())["subscribers"]
        return count


async def becomes(read: Any, wanted: object) -> None:
    """Waits until the awaited value is the wanted one."""
    found: object = None
    try:
        async with asyncio.timeout(harness.DEADLINE):
            while (found := await read()) != wanted:  # noqa: ASYNC110  # it is the result of steps that report no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"{wanted} expected, not {found}")


async def drive(window: Window, server: harness.Running, version: str) -> None:
    """One version of React, from the first render to the end."""
    page, room, desk, doc = window.page, f"room:{version}", f"desk:{version}", f"doc:{version}"
    heading = page.get_by_test_id("room").locator("h1")

    async def say(text: str, channel: str = room) -> dict[str, Any]:
        return await server.publish(channel, {"type": "chat.message", "data": {"text": text}})

    # StrictMode mounts everything twice, and leaves one connection and one subscription.
    await page.evaluate("(name) => setNow({ name })", room)
    await expect(heading).to_have_text([f"{room} live: {version}"] * 2)
    assert await subscribers(server, room) == 1
    assert window.count("subscribe", room) == 1
    assert window.count("history", room) == 0, "the first messages came with the subscribe"
    assert "connecting" in await page.evaluate("markup"), "it was rendered as on a server"

    # Lists are live; each listener gets an event once.
    removed = await say("one")
    await say("two")
    await becomes(window.texts, [["one", "two"]] * 2)
    assert await page.evaluate("seen.events") == ["one", "one", "two", "two"]
    await page.evaluate("channel.publish('chat.message', { text: 'three' })")
    await becomes(window.texts, [["one", "two", "three"]] * 2)

    # Components that are mounted again in the same commit, and hidden ones, keep the subscription. A new one has the list.
    await page.evaluate("setNow({ key: 1, rooms: 3 })")
    await becomes(window.texts, [["one", "two", "three"]] * 3)
    await page.evaluate("setNow({ slow: true })")
    await page.get_by_test_id("waiting").wait_for()
    await say("while it was hidden")
    await page.evaluate("finish()")
    await page.get_by_test_id("slow").wait_for()
    await becomes(window.texts, [["one", "two", "three", "while it was hidden"]] * 3)
    assert (window.count("subscribe", room), window.count("unsubscribe", room)) == (1, 0)

    # What the backend takes back leaves; a purge clears the list.
    headers = {"Authorization": f"Bearer {harness.API_KEY}"}
    events = f"{server.url}/api/v1/channels/{room}"
    async with server.http.delete(f"{events}/events/{removed['id']}", headers=headers) as response:
        assert response.status == 200
    await becomes(window.texts, [["two", "three", "while it was hidden"]] * 3)
    async with server.http.delete(f"{events}/history", headers=headers) as response:
        assert response.status == 200
    await say("after the purge")
    await becomes(window.texts, [["after the purge"]] * 3)

    # Presence and values.
    async with server.client("zoe", grants=["room:*"]) as other:
        await other.subscribe(room)
        await expect(heading.first).to_contain_text("zoe")
    await page.evaluate("(desk) => setNow({ desk })", version)
    await becomes(lambda: subscribers(server, desk), 1)
    await page.evaluate("update({ status: 'busy' })")
    await server.publish(doc, {"type": "doc.cursor", "data": {"user": "ann"}})
    await expect(page.get_by_test_id("desk")).to_have_text(f"{version} busy; ann")
    await page.evaluate("setNow({ desk: '' })")
    await becomes(lambda: subscribers(server, desk), 0)

    # Calls: the newest one counts, and the reply before it is shown until then.
    quote = page.get_by_test_id("quote")
    await page.evaluate("setNow({ quote: 'order.quote' })")
    await expect(quote).to_have_text("order.quote idle none fine")
    await page.evaluate("void quote({})")
    await expect(quote).to_have_text("order.quote pending none fine")
    await page.wait_for_function("answers.length === 1")
    await page.evaluate("answers[0].resolve({ price: 7 })")
    await expect(quote).to_have_text("order.quote idle 7 fine")
    await page.evaluate("void quote({}), void quote({})")
    await expect(quote).to_have_text("order.quote pending 7 fine")
    await page.wait_for_function("answers.length === 3")
    await page.evaluate("answers[2].reject('sold_out')")
    await expect(quote).to_have_text("order.quote idle 7 sold_out")
    await page.evaluate("answers[1].resolve({ price: 9 })")
    await page.evaluate("void quote({})")
    await expect(quote).to_have_text("order.quote pending 7 fine")
    await page.evaluate("setNow({ quote: 'order.other' })")
    await expect(quote).to_have_text("order.other idle none fine")
    await page.evaluate("setNow({ quote: '' })")

    # Another channel, in a transition while events arrive.
    await page.evaluate("(name) => set({ name })", f"{room}-b")
    texts = [str(number) for number in range(9)]
    for text in texts:
        await say(text, f"{room}-b")
    await becomes(window.texts, [texts] * 3)
    await becomes(lambda: subscribers(server, room), 0)

    # A component that goes leaves; the last one closes the client.
    await page.evaluate("setNow({ rooms: 0 })")
    await becomes(lambda: subscribers(server, f"{room}-b"), 0)
    assert await page.evaluate("client.state") == "ready"
    await page.evaluate("setNow({ mounted: false })")
    await page.wait_for_function("client.state === 'closed'")
    assert await page.evaluate("[...seen.states]") == ["connecting", "ready"]
    assert window.faults == []


async def drive_firefox(firefox: Firefox, server: harness.Running, address: str) -> None:
    """The hooks in Firefox: what StrictMode leaves, and that lists are live."""
    context = await firefox.new_context()
    page = await context.new_page()
    await page.goto(address)
    await page.evaluate("setNow({ name: 'room:firefox' })")
    shown = "JSON.stringify(Array.from(document.querySelectorAll('[data-testid=room]'), (room) => room.textContent))"
    rooms = "(texts) => %s === JSON.stringify([texts, texts].map((lines) => `room:firefox live: firefox${lines}`))"
    await page.wait_for_function(rooms % shown, arg="")
    assert await subscribers(server, "room:firefox") == 1
    assert await server.metric("connections") == 1
    await page.evaluate("channel.publish('chat.message', { text: 'one' })")
    await page.wait_for_function(rooms % shown, arg="one")
    assert await page.evaluate("seen.events") == ["one", "one"]
    await page.evaluate("setNow({ mounted: false })")
    await becomes(lambda: server.metric("connections"), 0)
    await context.close()


async def test_hooks_keep_one_subscription_under_strict_mode(
    tmp_path: Path, browser: Browser, firefox: Firefox
) -> None:
    expect.set_options(timeout=20_000)
    (contract := tmp_path / "contract.yaml").write_text(CONTRACT)
    build = await asyncio.create_subprocess_exec("node", str(BUILD), str(tmp_path))
    assert await build.wait() == 0
    async with (
        site(tmp_path) as (origin, config),
        asyncio.timeout(120),
        harness.serving(contract=contract, origins=(origin,)) as server,
    ):
        config["url"] = f"{server.url}/ws".replace("http", "ws", 1)
        await drive_firefox(firefox, server, f"{origin}/19?user=firefox")

        async def react(version: str) -> None:
            window = await open_window(browser, f"{origin}/{version}?user={version}")
            await drive(window, server, version)
            await window.page.close()

        await asyncio.gather(react("18"), react("19"))
        await becomes(lambda: server.metric("connections"), 0)

        example, lists = [await open_window(browser, f"{origin}/{name}?user=x") for name in ("readme", "lists")]
        await expect(example.page.locator("p")).to_have_text("ready, 1 here")
        await example.page.locator("input").fill("hello")
        await example.page.locator("input").press("Enter")
        await expect(example.page.locator("li")).to_have_text("reader: hello")
        await server.publish("board:main", {"type": "board.metric", "data": {"metric": "cpu", "value": 7}})
        await lists.page.wait_for_function("shown.metric === 7 && shown.messages?.[1] === 'live'")
        assert await lists.page.evaluate("[shown.messages[0], shown.members]") == [["reader: hello"], ["reader"]]
        assert example.faults == lists.faults == []
