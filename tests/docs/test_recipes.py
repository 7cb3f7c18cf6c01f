"""docs/recipes: each recipe runs as it is printed, with two windows, a reload and a network that breaks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from service.adapters.http_backend.signing import check_secret
from service.contract.load import load
from tests.docs.blocks import DOCS, blocks, write_files
from tests.docs.stage import Stage, stage
from tests.stores.process import until
from tests.support.harness import DEADLINE

pytestmark = [pytest.mark.asyncio(loop_scope="session")]
RECIPES = sorted(page.stem for page in (DOCS / "recipes").glob("*.md") if page.stem != "README")


@pytest.mark.parametrize("recipe", RECIPES)
async def test_recipe_contract_loads(recipe: str, tmp_path: Path) -> None:
    assert {"contract.yaml", "backend.py", "index.html", "main.js"} <= write_files(
        DOCS / "recipes" / f"{recipe}.md", tmp_path
    ).keys()
    assert load(tmp_path / "contract.yaml").channels


async def test_readme_lists_every_recipe() -> None:
    listed = re.findall(r"^\| \[[^]]+\]\((\S+)\.md\)", (DOCS / "recipes" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == RECIPES


def pages(recipe: str) -> list[str]:
    """The pages that have the files of a recipe."""
    return ["recipes/README.md", f"recipes/{recipe}.md"]


async def refused(running: Stage, user: str) -> None:
    """Fails the test unless the service refuses this user the channel of the recipe."""
    page = await (await running.browser.new_context()).new_page()
    async with page.expect_console_message(lambda message: "forbidden" in message.text):
        await page.goto(f"{running.origin}/?user={user}")
    await page.close()


@pytest.mark.browser
async def test_chat_recipe_resumes_and_sends_what_was_typed_offline(tmp_path: Path, browser: Browser) -> None:
    async with stage(pages("chat"), tmp_path, browser) as running:
        ann, ben = [await running.window(user) for user in ("ann", "ben")]
        for page in (ann, ben):
            await expect(page.locator("#members")).to_have_text("Ann, Ben")
        await ann.locator("#text").press_sequentially("hi")
        await expect(ben.locator("#typing")).to_have_text("ann typing …")
        await ann.locator("#text").press("Enter")
        for page in (ann, ben):
            await expect(page.locator("#messages li")).to_have_text(["ann: hi"])
        await expect(ben.locator("#typing")).not_to_contain_text("ann")

        running.network.cut()
        await running.server.publish("room:lobby", {"type": "chat.message", "data": {"text": "missed"}, "from": "eve"})
        await ann.locator("#text").fill("later")
        await ann.locator("#text").press("Enter")
        await expect(ann.locator("#messages li")).to_have_text(["ann: hi", "ann: later …"])
        running.network.heal()
        await ben.reload()
        for page in (ann, ben):
            await expect(page.locator("#messages li")).to_have_text(["ann: hi", "eve: missed", "ann: later"])
        await refused(running, "mallory")


def made_secret(folder: Path) -> str:
    """What the commands of the recipe make WEBHOOK_SECRET."""
    [commands] = [block.text for block in blocks(DOCS / "recipes" / "archive.md") if block.language == "sh"]
    script = f'{commands}\nprintf %s "$WEBHOOK_SECRET"'
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


async def test_archive_recipe_makes_a_secret_once(tmp_path: Path) -> None:
    secret = made_secret(tmp_path)
    assert check_secret(secret) == made_secret(tmp_path)
    assert (tmp_path / "webhook-secret").stat().st_mode & 0o077 == 0


@pytest.mark.browser
@pytest.mark.docs
async def test_archive_recipe_goes_on_live_where_the_archive_ends(tmp_path: Path, browser: Browser) -> None:
    async with stage(pages("archive"), tmp_path, browser) as running:
        ann = await running.window("ann")
        await expect(ann.locator("#state")).to_have_text("ready")
        said = [f"message {number}" for number in range(30)]  # more than the history keeps
        for text in said:
            await running.server.publish("room:lobby", {"type": "chat.message", "data": {"text": text}, "from": "eve"})
        await expect(ann.locator("#messages li")).to_have_count(30)

        async def archived() -> bool:
            found = await running.server.http.get(f"{running.origin}/messages?user=ann&room=room:lobby&words=")
            return len((await found.json())["items"]) == 30

        await until(archived, "the archive has all messages", within=DEADLINE)
        ben = await running.window("ben")
        await expect(ben.locator("#messages li")).to_have_text([f"eve: {text}" for text in said])
        await ann.locator("#text").fill("the newest message")
        await ann.locator("#text").press("Enter")
        for page in (ann, ben):
            await expect(page.locator("#messages li").last).to_have_text("ann: the newest message")
        await ben.locator("#words").fill("MESSAGE 2")
        await ben.locator("#words").press("Enter")
        await expect(ben.locator("#found li")).to_have_text(
            [f"eve: {text}" for text in said if text.startswith("message 2")]
        )
        assert await running.post("/webhooks", json={"entries": []}) == 401
        await refused(running, "mallory")


@pytest.mark.browser
@pytest.mark.docs
async def test_dashboard_recipe_has_the_first_state_without_a_new_publish(tmp_path: Path, browser: Browser) -> None:
    async with stage(pages("dashboard"), tmp_path, browser) as running:
        ann = await running.window("ann")
        async with running.run("feed.py"):
            await expect(ann.locator("#metrics li")).to_have_text([re.compile(r"free GB: \d"), re.compile(r"load: \d")])
            await ann.wait_for_function("document.querySelector('polyline').points.length >= 3")

            running.network.cut()
            await expect(ann.locator("#status")).to_have_text("stale")
            running.network.heal()
            await expect(ann.locator("#status")).to_have_text("live")
        stored = len((await read(running, "/api/v1/channels/board:main/history"))["events"])
        ben = await running.window("ben")
        for page in (ann, ben):
            await expect(page.locator("#metrics li")).to_have_count(2)
            await page.wait_for_function(f"document.querySelector('polyline').points.length === {stored}")
        assert await ann.locator("#metrics").inner_text() == await ben.locator("#metrics").inner_text()
        await refused(running, "mallory")


async def read(running: Stage, path: str) -> dict[str, Any]:
    """Reads from the backend API."""
    key = {"Authorization": f"Bearer {running.environment['TIDEWIRE_API_KEY']}"}
    async with running.server.http.get(f"{running.server.url}{path}", headers=key) as response:
        assert response.status == 200
        body: dict[str, Any] = await response.json()
        return body


@pytest.mark.browser
@pytest.mark.docs
async def test_tracking_recipe_moves_vehicles_and_drops_silent_ones(tmp_path: Path, browser: Browser) -> None:
    async with stage(pages("tracking"), tmp_path, browser, replace={"ttl: 30s": "ttl: 5s"}) as running:
        ann = await running.window("ann")
        async with running.run("drive.py"):
            await expect(ann.locator("#count")).to_have_text("1")
            dot = ann.locator("#map circle")
            await expect(dot).to_have_count(1)
            at = await dot.get_attribute("cx")
            await ann.wait_for_function(f"document.querySelector('circle').getAttribute('cx') !== '{at}'")
            # Between two positions the dot is at places that no event has.
            positions = "[...new Set(globalThis.seen)].length > 20"
            await ann.evaluate(
                """() => { globalThis.seen = []; requestAnimationFrame(function look() {
                     globalThis.seen.push(document.querySelector('circle')?.getAttribute('cx'));
                     requestAnimationFrame(look);
                   }); }"""
            )
            await ann.wait_for_function(positions)
            await ann.reload()
            await expect(ann.locator("#count")).to_have_text("1")
            assert await running.post("/position", json={"x": 1, "y": 1}, headers={"Authorization": "guess"}) == 401
            running.network.cut()
        await expect(ann.locator("#map circle")).to_have_count(0)
        running.network.heal()
        await expect(ann.locator("#state")).to_have_text("ready")
        await expect(ann.locator("#count")).to_have_text("0")


@pytest.mark.browser
@pytest.mark.docs
async def test_notifications_recipe_counts_unread_in_all_tabs(tmp_path: Path, browser: Browser) -> None:
    async with stage(pages("notifications"), tmp_path, browser, deadlines={"presence_leave": 0.1}) as running:
        first, second = [await running.window("ann") for _ in range(2)]
        for page in (first, second):
            await expect(page.locator("#state")).to_have_text("ready")
        assert await running.post("/ship/7") == 200
        for page in (first, second):
            await expect(page.locator("#unread")).to_have_text("1")
            await expect(page.locator("#items li")).to_have_text(["● Order 7 has shipped"])
        await first.locator("#read").click()
        for page in (first, second):
            await expect(page.locator("#unread")).to_have_text("0")
            await expect(page.locator("#items li")).to_have_text(["Order 7 has shipped"])

        running.network.cut()
        await running.post("/ship/8")
        running.network.heal()
        await expect(second.locator("#items li")).to_have_text(["● Order 8 has shipped", "Order 7 has shipped"])

        for page in (first, second):
            await page.context.close()
        await gone(running, "inbox:ann")
        for order in (9, 9, 10):  # the second request for an order repeats the first one
            await running.post(f"/ship/{order}")
        await running.backend.printed("mail to ann: Order 10")
        assert sum("mail to ann: Order 9" in line for line in running.backend.lines) == 1
        third = await running.window("ann")
        await expect(third.locator("#unread")).to_have_text("3")


async def gone(running: Stage, channel: str) -> None:
    """Waits until nobody is present in the channel."""
    while (await read(running, f"/api/v1/channels/{channel}/presence"))["presence"]["count"]:
        pass


@pytest.mark.browser
@pytest.mark.docs
async def test_cursors_recipe_shows_the_last_place_and_removes_who_leaves(tmp_path: Path, browser: Browser) -> None:
    replace = {"const IDLE = 10_000": "const IDLE = 1e9"}
    async with stage(
        pages("cursors"), tmp_path, browser, replace=replace, deadlines={"presence_leave": 0.1}
    ) as running:
        ann, ben = [await running.window(user) for user in ("ann", "ben")]
        for page in (ann, ben):
            await expect(page.locator("#state")).to_have_text("ready")
        await move(ann, ben, 0.25)
        running.network.cut()
        await expect(ann.locator("#state")).not_to_have_text("ready")
        running.network.heal()
        for page in (ann, ben):
            await expect(page.locator("#state")).to_have_text("ready")
        await move(ann, ben, 0.75)
        await expect(ann.locator("#page b")).to_have_count(0)
        await ann.context.close()
        await expect(ben.locator("#page b")).to_have_count(0)


async def move(ann: Page, ben: Page, part: float) -> None:
    """Moves ann's pointer in many steps to that part of the page's width, and waits until ben sees it there."""
    box = await ann.locator("#page").bounding_box()
    assert box is not None
    mark = ben.locator("#page b")
    await ann.mouse.move(box["x"] + 5, box["y"] + 5)
    await ann.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2, steps=100)
    await expect(mark).to_have_text("↖ Ann")
    await expect(mark).to_have_attribute("style", re.compile(rf"left: {part * 100:.0f}"))


@pytest.mark.browser
@pytest.mark.docs
async def test_streaming_recipe_gives_everybody_the_whole_text(tmp_path: Path, browser: Browser) -> None:
    async with stage(pages("streaming-answers"), tmp_path, browser) as running:
        ann, ben = [await running.window(user) for user in ("ann", "ben")]
        for page in (ann, ben):
            await expect(page.locator("#state")).to_have_text("ready")
        await ann.locator("#question").fill("Why")
        await ann.locator("#question").press("Enter")
        answer = ben.locator("#answers p").first
        await expect(answer).to_contain_text("Why 3.")
        running.network.cut()
        await expect(ben.locator("#state")).not_to_have_text("ready")
        running.network.heal()
        late = await running.window("eve")
        whole = " ".join(f"Why {number}." for number in range(100))
        for page in (ann, ben, late):
            await expect(page.locator("#answers p")).to_have_text([whole])
        await late.reload()
        await expect(late.locator("#answers p")).to_have_text([whole])

        await ann.locator("#question").fill("How")
        await ann.locator("#question").press("Enter")
        await expect(ann.locator("#answers p").nth(1)).to_contain_text("How 1.")
        await ann.locator("#stop").click()
        while (end := (await read(running, "/api/v1/channels/conversation:1/history"))["events"][-1])[
            "type"
        ] != "answer.end":
            pass
        assert end["data"]["reason"] == "stopped"
        assert "How 99." not in end["data"]["text"]
        for page in (ann, ben, late):
            await expect(page.locator("#answers p").nth(1)).to_have_text(end["data"]["text"].strip())
