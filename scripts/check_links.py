#!/usr/bin/env python3
"""Fails where a link from a page of this checkout to another leads nowhere, down to the heading; other sites are not asked."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


def main() -> None:
    """Checks every Markdown file that is, or is about to be, part of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    faults = [f"{name}: {fault}" for name in listed if (ROOT / name).is_file() for fault in dead_links(ROOT / name)]
    if faults:
        sys.exit("\n".join(faults))


def dead_links(page: Path) -> Iterator[str]:
    """Links of a page whose file or heading does not exist."""
    for link in _LINK.findall(_CODE.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # another site
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT):
            yield f"{link}: there is no such file"
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
            yield f"{link}: the page has no such heading"


def _slug(heading: str) -> str:
    """A heading's anchor as code hosts make it: lower case, spaces as hyphens, other punctuation left out."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def _anchors(page: Path) -> frozenset[str]:
    """What can stand behind # in a link to the page; of equal headings the second is numbered."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for heading in _HEADING.findall(text):
        name = _slug(heading)
        found[name] = found.get(name, 0) + 1
    numbered = {f"{name}-{n}" for name, count in found.items() for n in range(1, count)}
    return frozenset(found) | numbered | frozenset(_ANCHOR.findall(text))


if __name__ == "__main__":
    main()
