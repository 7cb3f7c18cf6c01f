"""Writes the table of alerts in docs/operate/alerts.md and docs/runbooks/README.md from the chart's rules.

`--check` writes nothing and fails if a page differs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "helm" / "tidewire" / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = {ROOT / "docs" / "operate" / "alerts.md": "../runbooks/", RUNBOOKS / "README.md": ""}
"""Where the table stands, and how the runbooks are reached from there."""
BEGIN, END = "<!-- generated: alerts -->\n", "<!-- /generated -->"
_THRESHOLD = re.compile(r"(?:>=|<=|==|>|<) [0-9.]+$")


def alerts() -> Iterator[dict[str, Any]]:
    """Every alert of the chart, in the order of its files."""
    for file in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def table(to_runbooks: str) -> str:
    """One row an alert. Raises ValueError for one whose expression does not end with its threshold."""
    rows = ["| alert | severity | when | for | threshold |", "|---|---|---|---|---|"]
    for alert in alerts():
        name = alert["alert"]
        found = _THRESHOLD.search(alert["expr"])
        if found is None:
            raise ValueError(f"{name}: its expression does not end with a comparison")
        cells = (
            f"[{name}]({to_runbooks}{name}.md)",
            alert["labels"]["severity"],
            alert["annotations"]["summary"],
            alert.get("for", "at once"),
            f"`{found[0]}`",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def page_with_table(text: str, to_runbooks: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(to_runbooks) + END + after


def main() -> int:
    """Writes, or with --check compares; 1 if a page differs."""
    stale = 0
    for page, to_runbooks in PAGES.items():
        old = page.read_text(encoding="utf-8")
        new = page_with_table(old, to_runbooks)
        if old == new:
            continue
        if "--check" not in sys.argv[1:]:
            page.write_text(new, encoding="utf-8")
            continue
        stale = 1
        print(f"{page.name} differs from the alerts: run python scripts/alerts_reference.py", file=sys.stderr)
    return stale


if __name__ == "__main__":
    sys.exit(main())
