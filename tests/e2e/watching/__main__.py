"""Plays the day and draws every row of every dashboard: `make dashboards-look`."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, async_playwright

from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.e2e.programs import program
from tests.e2e.watching import drawing, expressions
from tests.e2e.watching.day import Day, watched
from tests.stores.process import MissingProgramError
from tests.support.files import as_many_as_may_be
from tests.support.monitoring import ROOT

FOLDER = ROOT / "build" / "dashboards"
MANUAL = {"tidewire-overview": ROOT / "docs" / "images" / "dashboard-overview.png"}
"""Pictures that the manual shows."""


def chromium() -> Path:
    """A browser. Raises MissingProgramError."""
    for name in CHROMIUM:
        try:
            return program(name)
        except MissingProgramError:
            continue
    raise MissingProgramError("drawing needs Chromium: run scripts/setup.sh test (Debian: apt-get install chromium)")


async def drawn(day: Day, panel: dict[str, Any]) -> drawing.Drawn:
    """The series of a panel."""
    found: drawing.Drawn = []
    for target in panel["targets"]:
        series = await day.prometheus.over(expressions.filled_in(target["expr"]), day.began, day.ended)
        found += drawing.named(target["legendFormat"], series)
    return found


async def pictures(day: Day, browser: Browser) -> None:
    """One a row."""
    page = await browser.new_page(viewport={"width": 24 * drawing.COLUMN + 16, "height": 100})
    for dashboard in expressions.dashboards():
        rows: list[tuple[str, list[dict[str, Any]]]] = []
        for panel in dashboard["panels"]:
            if panel["type"] == "row":
                rows.append((panel["title"], []))
            else:
                rows[-1][1].append(panel)
        for title, panels in rows:
            shown = {panel["id"]: await drawn(day, panel) for panel in panels}
            name = f"{dashboard['uid']}-{re.sub('[^a-z]+', '-', title.lower()).strip('-')}"
            await page.set_content(
                drawing.row(f"{dashboard['title']} · {title}", panels, shown, (day.began, day.ended))
            )
            picture = await page.screenshot(full_page=True)
            for file in filter(None, (FOLDER / f"{name}.png", MANUAL.get(name))):
                file.write_bytes(picture)
                print(file.relative_to(ROOT))


async def look() -> None:
    """Plays, asks, draws."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    browser_ = chromium()
    async with watched() as day, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=browser_, args=ARGUMENTS)
        try:
            await pictures(day, browser)
        finally:
            await browser.close()


if __name__ == "__main__":
    with as_many_as_may_be():
        asyncio.run(look())
    sys.exit(0)
