"""The fenced blocks of a Markdown page.

A block that is a file names it: in a comment on its first line, or in a marker on the line above the fence.

    ```yaml                          <!-- file: contract.yaml -->
    # contract.yaml                  ```yaml
    channels: …                      channels: …
    ```                              ```

`write_files` writes a page's files to a folder, so that a test runs what the page prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<info>[^`]*)$")
_HEADING = re.compile(r" {0,3}#{1,6} +(?P<text>.*?)(?: +#+)? *$")
_MARKER = re.compile(r" *<!-- (?P<kind>[a-z]+)(?:: (?P<name>\S+))? -->\s*$")
_NAMED = re.compile(r"(?:#|//|--|<!--|/\*) (?P<name>[\w./-]+\.\w+)(?: -->| \*/)?$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    """The first word of the info string; empty if there is none."""
    info: str
    """What follows the language in the info string."""
    line: int
    """The line of the opening fence, from 1."""
    text: str
    """The content, with a newline at its end."""
    heading: str
    """The text of the heading above; empty before the first one."""
    file: str | None
    """The file that the block is, if it names one."""
    marker: str | None
    """The kind of the marker on the line above, such as `file` or `faults`."""


class PageError(ValueError):
    """A page whose blocks cannot be read; the message has the page and the line."""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, from top to bottom."""
    return list(_read(page))


def files(page: Path) -> dict[str, str]:
    """The files of a page: name → content.

    Raises:
        PageError: two blocks are the same file, or a name leads out of the folder.
    """
    found: dict[str, str] = {}
    for block in blocks(page):
        if block.file is None:
            continue
        if block.file in found:
            raise PageError(f"{page}:{block.line}: {block.file} appears twice")
        if Path(block.file).is_absolute() or ".." in Path(block.file).parts:
            raise PageError(f"{page}:{block.line}: {block.file} is outside of the folder")
        found[block.file] = block.text
    return found


def write_files(page: Path, folder: Path, *, replace: dict[str, str] | None = None) -> dict[str, str]:
    """Writes the files of a page to a folder, and returns them. `replace` has texts, such as addresses, that the
    files have differently in a test.

    Raises:
        PageError: a text of `replace` is in no file of the page, or see `files`.
    """
    found = files(page)
    for old, new in (replace or {}).items():
        if not any(old in text for text in found.values()):
            raise PageError(f"{page}: no file has {old!r}")
        found = {name: text.replace(old, new) for name, text in found.items()}
    for name, text in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return found


def _read(page: Path) -> Iterator[Block]:
    heading, above = "", ""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if opening := _FENCE.match(line):
            content = []
            for _, inner in lines:
                if _closes(inner, opening["fence"]):
                    break
                content.append(inner.removeprefix(opening["indent"]))
            else:
                raise PageError(f"{page}:{number}: the block has no end")
            yield _block(opening["info"].strip(), number, content, heading, above)
        elif found := _HEADING.match(line):
            heading = found["text"]
        above = line


def _closes(line: str, fence: str) -> bool:
    return set(line.strip()) == {fence[0]} and len(line.strip()) >= len(fence)


def _block(info: str, line: int, content: list[str], heading: str, above: str) -> Block:
    language, _, rest = info.partition(" ")
    marker = _MARKER.match(above)
    named = _NAMED.match(content[0].strip()) if content else None
    file = marker["name"] if marker and marker["kind"] == "file" else named["name"] if named else None
    text = "".join(f"{each}\n" for each in content)
    return Block(language, rest.strip(), line, text, heading, file, marker["kind"] if marker else None)
