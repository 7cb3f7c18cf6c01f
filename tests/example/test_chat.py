"""The worked example, examples/chat, as two people use it: in a browser, with the real database, webhooks and mails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from tidewire import NewEvent

from tests.browser.axe import severe_faults
from tests.browser.conftest import PATIENCE, running_chromium
from tests.example.people import PASSWORD, Chat, new_name
from tests.stores.process import until
from tests.support.harness import eventually

pytestmark = [pytest.mark.example, pytest.mark.browser]

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDTHS = (390, 768, 1100, 1440)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    async with running_chromium() as browser:
        yield browser


class Window:
    """One person's browser, and what went wrong in it."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.faults: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on(
            "console", lambda message: self.faults.append(message.text) if "Security Policy" in message.text else None
        )

    async def sign_up(self) -> None:
        await self.page.get_by_role("button", name="Make an account").click()
        await self.page.get_by_label("Name").fill(self.name)
        await self.page.get_by_label("E-mail").fill(f"{self.name}@example.org")
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Sign up").click()
        await self.is_online()

    async def is_online(self) -> None:
        await expect(self.page.get_by_role("status").first).to_have_text("Online")

    async def create_room(self, title: str) -> str:
        """Returns the link of its invitation."""
        await self.page.get_by_role("button", name="New room").click()
        await self.page.get_by_label("Name of the room").fill(title)
        await self.page.keyboard.press("Enter")
        await expect(self.page.get_by_text("No messages yet")).to_be_visible()
        return await self.page.locator("#invite").input_value()

    async def join(self, link: str) -> None:
        await self.page.goto(link)
        await self.page.get_by_role("button", name="Join the room").click()
        await self.sees_log()

    async def sees_log(self) -> None:
        await expect(self.page.get_by_role("log")).to_be_visible()

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.page.get_by_label("Message to").fill(text)
            await self.page.keyboard.press("Enter")

    async def sees(self, *texts: str) -> None:
        """All messages of the room, in order, without those on their way."""
        await expect(self.page.locator(".line:not([data-state]) .bubble")).to_have_text(list(texts))

    async def has_unread(self, number: int | None) -> None:
        badge = self.page.locator(".badge")
        if number is None:
            await expect(badge).to_have_count(0)
        else:
            await expect(badge).to_have_text(f"{number} unread")


@asynccontextmanager
async def window(browser: Browser, chat: Chat, name: str, **options: Any) -> AsyncIterator[Window]:
    """Opens the chat in a browser of its own."""
    context = await browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce", **options)
    opened = Window(await context.new_page(), new_name(name))
    await opened.page.goto(chat.stack.url)
    yield opened
    await context.close()
    assert opened.faults == []


async def test_two_people_chat_and_miss_nothing(chat: Chat, browser: Browser) -> None:
    async with window(browser, chat, "ann") as ann, window(browser, chat, "ben") as ben:
        await ann.sign_up()
        await ben.sign_up()
        link = await ann.create_room("Harbour office")
        room = room_id(link_of=ann.page.url)

        async def becomes_stored(*texts: str) -> None:
            await becomes(
                lambda: chat.rows("SELECT text FROM messages WHERE room = $1 ORDER BY number", room), list(texts)
            )

        await ben.join(link)
        await expect(ann.page.locator("#members li")).to_have_text(
            [f"AN{ann.name} (you)here", f"BE{ben.name}here"], use_inner_text=False
        )

        # Messages, typing, and what moderation does.
        await ben.page.get_by_label("Message to").press_sequentially("he")
        await expect(ann.page.locator(".typing")).to_have_text(f"{ben.name} is typing…")
        await ben.say("hello")
        await expect(ann.page.locator(".typing")).to_have_text("")
        await ann.say("Damn, it rains", "Come to our casino")
        await expect(ann.page.get_by_role("alert")).to_contain_text(
            "Not sent: Advertising is not allowed here (“casino”)."
        )
        await ben.sees("hello", "D**n, it rains")
        await ann.page.get_by_role("button", name="Edit").click()
        await expect(ann.page.get_by_label("Message to")).to_have_value("Come to our casino")
        await ann.page.get_by_label("Message to").fill("")
        await ann.sees("hello", "D**n, it rains")
        await becomes_stored("hello", "D**n, it rains")

        # Ben looks at another room: the number of unread messages comes by itself, and ends when he comes back.
        await ben.create_room("Kitchen")
        await ann.say("Are you there?", "I have news.")
        await ben.has_unread(2)
        await ben.page.get_by_role("link", name="Harbour office").click()
        await ben.sees("hello", "D**n, it rains", "Are you there?", "I have news.")
        await ben.has_unread(None)
        assert chat.mails_to(ben.name) == []

        # Ben is away: he gets one mail, and finds all messages when he comes back.
        address, own = ben.page.url, f"user:{ben.name}"
        await ben.page.goto("about:blank")
        async with chat.tidewire() as backend:
            await becomes(lambda: backend.presence_counts([own]), {own: 0})
        await ann.say("The ferry is late.", "Wait at pier four.")
        await eventually(lambda: len(chat.mails_to(ben.name)) == 1, within=60)
        assert "The ferry is late." in chat.mails_to(ben.name)[0][1]
        news = ["hello", "D**n, it rains", "Are you there?", "I have news.", "The ferry is late.", "Wait at pier four."]
        await ben.page.goto(address)
        await ben.sees(*news)
        await becomes_stored(*news)

        # The backend is away. What is published waits in Tidewire; what needs its moderation waits in the page.
        chat.stack.stop_program("backend")
        async with chat.tidewire() as backend:
            for number in range(20):
                news.append(f"message {number}")
                await backend.publish(f"room:{room}", "chat.message", {"text": news[-1]}, sender=ann.name)
        await ann.say("Is anybody there?")
        await expect(ann.page.get_by_text("Sending…")).to_be_visible()
        chat.stack.start_backend()
        news.append("Is anybody there?")
        for each in (ann, ben):
            await each.sees(*news)
        await becomes_stored(*news)
        assert len(chat.mails_to(ben.name)) == 1

        # Ann leaves. Ben sees it, and she sees nothing any more.
        await ann.page.get_by_role("button", name="Leave the room").click()
        await ann.page.get_by_role("button", name="Leave", exact=True).click()
        await expect(ann.page.get_by_role("link", name="Harbour office")).to_have_count(0)
        await expect(ben.page.locator("#members li")).to_have_text([f"BE{ben.name} (you)here"])
        await ann.page.goto(address)
        await expect(ann.page.get_by_text("There is no such room, or you are not a member of it.")).to_be_visible()
        await expect(ann.page.get_by_role("log")).to_have_count(0)


async def test_backend_that_is_killed_again_and_again_stores_each_message_once(chat: Chat) -> None:
    texts: list[str] = []
    async with chat.person("ann") as ann, chat.tidewire() as tidewire:
        room, _ = await ann.create_room()
        for _ in range(3):
            start = len(texts)
            texts += [f"message {start + number}" for number in range(150)]
            channel, some = f"room:{room}", texts[start:]
            await tidewire.publish_many(
                NewEvent(channel, "chat.message", {"text": text}, sender=ann.name) for text in some
            )
            await until(lambda: has_more(chat, channel, start), "the first messages of this round")  # noqa: B023  # awaited here
            backend = chat.stack.programs.pop("backend").process
            backend.kill()
            backend.wait()
            chat.stack.start_backend()
        await becomes(lambda: chat.rows("SELECT text FROM messages WHERE room = $1 ORDER BY number", room), texts)
        assert await ann.unread() == [0]


async def test_messages_that_the_channel_has_dropped_come_from_the_database(chat: Chat, browser: Browser) -> None:
    texts = [f"line {number}" for number in range(260)]  # the channel keeps 200
    async with window(browser, chat, "ann") as ann, chat.tidewire() as backend:
        await ann.sign_up()
        await ann.create_room("Archive")
        channel = f"room:{room_id(link_of=ann.page.url)}"
        for end in (130, 260):
            some = texts[end - 130 : end]
            await backend.publish_many(
                NewEvent(channel, "chat.message", {"text": text}, sender=ann.name) for text in some
            )
            await becomes(lambda: count_of(chat, channel), end)
        await ann.page.reload()
        await ann.sees(*texts[-50:])
        older = ann.page.get_by_role("button", name="Older messages")
        for shown in (100, 150, 200, 250, 260):
            # What somebody reads stays in its place.
            line = ann.page.get_by_text(texts[-shown + 50 if shown < 260 else 10], exact=True)
            await older.click()
            await ann.sees(*texts[-shown:])
            await expect(line).to_be_in_viewport()
        await expect(older).to_have_count(0)

        # Tidewire has lost everything. The database has not, and the open page goes on, without a gap.
        chat.stack.stop_program("tidewire")
        await expect(ann.page.get_by_role("status").first).not_to_have_text("Online")
        chat.stack.start_tidewire()
        await ann.is_online()
        await ann.say("after the restart")
        await ann.sees(*texts[-50:], "after the restart")
        await older.click()
        await ann.sees(*texts[-100:], "after the restart")
        await becomes(lambda: count_of(chat, channel), len(texts) + 1)
        await ann.page.reload()
        await ann.sees(*texts[-50:], "after the restart")


async def test_page_without_a_network_says_so_and_sends_later(chat: Chat, browser: Browser) -> None:
    async with window(browser, chat, "ann") as ann:
        await ann.sign_up()
        await ann.create_room("Pier")
        await ann.say("one")
        sending = ann.page.locator('[data-state="sending"]')
        await ann.sees("one")
        await expect(sending).to_have_count(0)
        await ann.page.context.set_offline(True)
        await expect(ann.page.get_by_role("status").first).to_have_text("No network")
        await ann.say("two")
        await expect(sending).to_contain_text("two")
        await expect(ann.page.get_by_role("alert")).to_have_count(0)
        await ann.page.context.set_offline(False)
        await ann.is_online()
        await ann.sees("one", "two")
        await expect(sending).to_have_count(0)


async def test_strangers_see_why_there_is_nothing(chat: Chat, browser: Browser) -> None:
    async with window(browser, chat, "ann") as ann, window(browser, chat, "eve") as eve:
        await ann.sign_up()
        await ann.create_room("Secret room")
        await ann.say("nobody else reads this")
        await eve.page.goto(ann.page.url)
        await eve.sign_up()
        await expect(eve.page.get_by_text("There is no such room, or you are not a member of it.")).to_be_visible()
        await eve.page.goto(f"{chat.stack.url}/#join/guessed")
        await expect(eve.page.get_by_text("This invitation leads nowhere. Ask for a new one.")).to_be_visible()
        assert "nobody else" not in await eve.page.content()


async def test_errors_are_told_in_plain_words(chat: Chat, browser: Browser) -> None:
    async with window(browser, chat, "ann") as ann:
        page = ann.page
        await page.get_by_label("Name").fill(ann.name)
        await page.get_by_label("Password").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
        await ann.sign_up()
        chat.stack.stop_program("backend")
        try:
            await page.get_by_role("button", name="New room").click()
            await page.get_by_label("Name of the room").fill("Kitchen")
            await page.keyboard.press("Enter")
            message = "The server cannot be reached. Check your connection, then try again."
            await expect(page.get_by_role("alert")).to_have_text(message)
        finally:
            chat.stack.start_backend()
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("No messages yet")).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in to the chat")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_every_width_and_are_accessible(chat: Chat, browser: Browser, scheme: Any) -> None:
    async with window(browser, chat, "ann", color_scheme=scheme) as ann:
        await faultless(ann, f"{scheme}-login")
        await ann.sign_up()
        await ann.create_room("A room whose name is quite long, so that it has to be cut")
        await ann.say("a word", "https://example.org/" + "long" * 60, "a casino")
        await expect(ann.page.get_by_role("alert")).to_be_visible()
        await faultless(ann, f"{scheme}-room")
        for size in ((390, 800), (800, 390), (390, 500)):  # the log stays at its end
            await ann.page.set_viewport_size({"width": size[0], "height": size[1]})
            await expect(ann.page.get_by_role("button", name="Edit")).to_be_in_viewport(ratio=0.9)
        await ann.page.set_viewport_size({"width": 390, "height": 800})
        await ann.page.get_by_role("button", name="1 of 1 here").press("Enter")
        await faultless(ann, f"{scheme}-members")
        await ann.page.set_viewport_size({"width": 390, "height": 800})
        await ann.page.keyboard.press("Escape")
        await expect(ann.page.locator("#members")).to_be_hidden()
        await ann.page.get_by_role("link", name="Back to all rooms").press("Enter")
        await faultless(ann, f"{scheme}-rooms")


async def faultless(window: Window, name: str) -> None:
    """No width has a scroll bar below, and none has severe faults of accessibility. Pictures are in build/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        await window.page.set_viewport_size({"width": width, "height": 800})
        await window.page.screenshot(path=SCREENSHOTS / f"chat-{name}-{width}.png")
        assert await window.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
        assert await severe_faults(window.page) == [], (name, width)


def room_id(link_of: str) -> str:
    """The room whose page has this address."""
    return link_of.rpartition("/")[2]


async def count_of(chat: Chat, channel: str) -> int:
    [count] = await chat.rows("SELECT count(*) FROM messages WHERE room = $1", channel.removeprefix("room:"))
    return int(count)


async def has_more(chat: Chat, channel: str, than: int) -> bool:
    return await count_of(chat, channel) > than


async def becomes(read: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Waits until the awaited value is the wanted one."""
    found: object = None
    try:
        async with asyncio.timeout(60):
            while (found := await read()) != wanted:  # noqa: ASYNC110  # it is the result of steps that report no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{wanted} expected, not {found}")
