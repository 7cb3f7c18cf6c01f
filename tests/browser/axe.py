"""Accessibility faults of a page, found by axe-core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.async_api import Page

SOURCE = Path(__file__).parents[2] / "clients" / "js" / "node_modules" / "axe-core" / "axe.min.js"
SEVERE = ("serious", "critical")


async def severe_faults(page: Page) -> list[str]:
    """Returns the serious and critical faults: the rule, and the elements that break it.

    The script is evaluated by the browser's debugger, so the page's Content Security Policy stays as it is.
    """
    if not await page.evaluate("'axe' in globalThis"):
        await page.evaluate(SOURCE.read_text(encoding="utf-8") + ";0")
    found: list[dict[str, Any]] = await page.evaluate(
        "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations)"
    )
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]} | {' '.join(node['failureSummary'].split())[:300]}"
        for rule in found
        if rule["impact"] in SEVERE
        for node in rule["nodes"]
    ]
