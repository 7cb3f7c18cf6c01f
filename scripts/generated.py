"""Writes generated files, or checks that they are current. Shared by the generators in this folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_END = "<!-- /generated -->"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    head, *body = (f"| {' | '.join(map(str, row))} |\n" for row in (header, *rows))
    return head + "|---" * len(header) + "|\n" + "".join(body)


def with_block(page: Path, mark: str, body: str, text: str | None = None) -> str:
    """Returns the text of a page with a new body between `<!-- generated: mark -->` and the next `<!-- /generated -->`."""
    before, start, rest = (text or (ROOT / page).read_text(encoding="utf-8")).partition(f"<!-- generated: {mark} -->\n")
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise SystemExit(f"{page}: has no block <!-- generated: {mark} --> … {_END}")
    return before + start + body + end + after


def update(wanted: Mapping[Path, str]) -> int:
    """Writes the files that differ; with `--check` only names them. Returns the exit status."""
    check = "--check" in sys.argv[1:]
    stale = [
        path
        for path, text in wanted.items()
        if not (ROOT / path).exists() or (ROOT / path).read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if not check:
            (ROOT / path).write_text(wanted[path], encoding="utf-8")
        print(f"{path}: {'differs from its source; run `make fmt`' if check else 'written'}")
    return int(check and bool(stale))
