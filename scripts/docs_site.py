#!/usr/bin/env python3
"""Prepares the documentation for Zensical, which builds the site: `make docs` (docs/adr/0060-docs-as-a-site.md).

    scripts/docs_site.py build/docs      writes build/docs/pages and build/docs/zensical.toml

The pages stay where they are, and are written for the forge. Zensical reads one folder, and renders Markdown by the rules of
Python-Markdown. So this script copies the pages and the files that they link to, in the layout of the repository. That keeps
their links right. It changes the few things that Python-Markdown reads differently, and takes the navigation from docs/README.md.
No plugin of Zensical does that; other generators can't read this layout either.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
INDEX = "docs/README.md"
"""The list of all pages by task. Its sections are the tabs of the site, its tables their pages."""
OUTSIDE = (".github/", "docs/site/")
"""Folders whose Markdown is no documentation."""
_NAMES = {"docs/adr": "Decisions"}
"""The titles of folders that have no page of their own."""
MERMAID = SITE / "node_modules" / "@mermaid-js" / "tiny" / "dist" / "mermaid.tiny.js"

_FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)$")
_HEADING = re.compile(r"(#{1,6}) +(.*?)(?: +#+)?$")
_ITEM = re.compile(r"( *)([-*+]|\d+[.)])( +)")
_COMMENT = re.compile(r" *<!-- (.*?) -->\s*$")
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img alt="(?P<alt>[^"]*)" src="(?P<light>[^"]+)">\s*</picture>'
)
_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<file>[^)\s#]+\.svg)\)")
_DARK = re.compile(r"\n *@media \(prefers-color-scheme: dark\) \{\n(.*?)\n *\}(?=\n)", re.DOTALL)
_ROW = re.compile(r"\| \[(?P<title>[^\]]+)\]\((?P<link>[^)#]+)\) \|")


class SiteError(Exception):
    """The documentation cannot become a site; the message has the page."""


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file of the repository."""

    path: str
    """From the root of the repository, with slashes."""
    text: str


def tracked(root: Path) -> list[str]:
    """Every file of the repository, with those that are not yet committed, but not those that Git ignores."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(name for name in set(listed) if (root / name).is_file())


def pages(root: Path, names: list[str]) -> list[Page]:
    """The pages of the site."""
    chosen = [name for name in names if name.endswith(".md") and not name.startswith(OUTSIDE)]
    found = [Page(name, (root / name).read_text(encoding="utf-8")) for name in chosen]
    return [*found, *_indexes(found)]


def _indexes(found: list[Page]) -> Iterator[Page]:
    """A list of the pages of each folder that a page links to. On the forge, such a link shows the folder."""
    paths = {page.path for page in found}
    linked = {_resolve(page.path, link[1]) for page in found for link in _LINK.finditer(page.text)}
    for folder in sorted(linked):
        inside = [page for page in found if posixpath.dirname(page.path) == folder]
        if inside and f"{folder}/README.md" not in paths:
            rows = (f"- [{_title(page)}]({posixpath.basename(page.path)})\n" for page in inside)
            yield Page(f"{folder}/README.md", f"# {_NAMES[folder]}\n\n{''.join(rows)}")


def _title(page: Page) -> str:
    return page.text.partition("\n")[0].removeprefix("# ")


def navigation(index: Page) -> list[dict[str, list[dict[str, str]]]]:
    """The sections of the index, each with title and path of its pages."""
    sections: list[dict[str, list[dict[str, str]]]] = []
    entries: list[dict[str, str]] = []
    for line in index.text.splitlines():
        if line.startswith("## "):
            entries = []
            sections.append({line.removeprefix("## ").strip(): entries})
        elif row := _ROW.match(line):
            if not sections:
                raise SiteError(f"{index.path}: a page stands before the first section")
            path = _resolve(index.path, row["link"])
            entries.append({row["title"].replace("`", ""): path if path.endswith(".md") else f"{path}/README.md"})
    return sections


def _resolve(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def slug(heading: str, seen: dict[str, int]) -> str:
    """The id that the forge gives a heading; `seen` counts the ids of the page."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[^\w\- ]", "", text.replace("\\", "").strip().lower()).replace(" ", "-")
    count = seen.get(text, 0)
    seen[text] = count + 1
    return f"{text}-{count}" if count else text


def convert(page: Page, exists: set[str], drawings: set[str]) -> str:
    """A page as Python-Markdown reads it. `drawings` have the colours of both themes.

    Raises:
        SiteError: a link leads out of the documentation.
    """

    def drawn(image: re.Match[str]) -> str:
        if _resolve(page.path, image["file"]) not in drawings:
            return image[0]
        stem = image["file"].removesuffix(".svg")
        return f"![{image['alt']}]({stem}-light.svg#only-light)\n![{image['alt']}]({stem}-dark.svg#only-dark)"

    text = "\n".join(_lines(page, page.text, exists)) + "\n"
    return _IMAGE.sub(drawn, _PICTURE.sub(r"![\g<alt>](\g<light>#only-light)\n![\g<alt>](\g<dark>#only-dark)", text))


def themes(drawing: str) -> dict[str, str]:
    """A drawing as it is in each theme. In a page, the theme of the reader counts, not that of the system."""
    return {"light": _DARK.sub("", drawing), "dark": _DARK.sub(r"\1", drawing)}


def _lines(page: Page, text: str, exists: set[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    indents: list[int] = []  # of the contents of the list items that are open
    fence, previous, file = "", "", ""
    for line in text.splitlines():
        if fence:
            yield _indented(line, indents)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            previous = line
            continue
        if comment := _COMMENT.match(line):
            # Python-Markdown would begin a block of HTML.
            file = comment[1].removeprefix("file: ") if comment[1].startswith("file: ") else ""
            continue
        if opening := _FENCE.match(line):
            fence = opening[2]
            indents = _open_at(len(opening[1]), indents)
            if not indents and previous.strip():
                yield ""
            yield _indented(line + (f' title="{file}"' if file and opening[3].strip() else ""), indents)
        elif heading := _HEADING.match(line):
            indents = []
            yield f"{line} {{ #{slug(heading[2], seen)} }}"
        else:
            item = _ITEM.match(line)
            if line.strip():
                lazy = bool(indents) and not item and bool(previous.strip())  # continues a paragraph of the item
                if not lazy:
                    indents = _open_at(len(line) - len(line.lstrip()), indents)
            if item and previous.strip() and not _ITEM.match(previous) and not previous.startswith(" ") and not indents:
                yield ""  # a list may follow a paragraph at once; Python-Markdown wants an empty line
            yield _links(page, _indented(line, indents), exists)
            if item:
                indents.append(len(item[0]))
        file = ""
        previous = line


def _open_at(indent: int, indents: list[int]) -> list[int]:
    """The list items that a line with this indent belongs to."""
    return [each for each in indents if each <= indent]


def _indented(line: str, indents: list[int]) -> str:
    """Python-Markdown indents the content of each level by four spaces."""
    indent = len(line) - len(line.lstrip())
    inside = [each for each in indents if each <= indent]
    if not inside or not line.strip():
        return line
    return " " * (4 * len(inside) + indent - inside[-1]) + line.lstrip()


def _links(page: Page, line: str, exists: set[str]) -> str:
    def replaced(link: re.Match[str]) -> str:
        target = _resolve(page.path, link[1])
        if target in exists:
            return link[0]
        if f"{target}/README.md" in exists:
            return posixpath.join(link[1], "README.md") + (link[2] or "")
        raise SiteError(f"{page.path}: {link[1]} is not in the repository")

    return _LINK.sub(replaced, line)


def linked_files(documents: list[Page], exists: set[str]) -> set[str]:
    """What the pages link to, and is no page: pictures, schemas, source files."""
    found = set()
    for page in documents:
        text = page.text + "".join(f"]({target})" for target in re.findall(r'(?:src|srcset)="([^"]+)"', page.text))
        for link in _LINK.finditer(re.sub(r"(?m)^ *```.*?^ *```", "", text, flags=re.DOTALL)):
            target = _resolve(page.path, link[1])
            if target in exists and not target.endswith(".md"):
                found.add(target)
    return found


def write(folder: Path, root: Path = ROOT) -> None:
    """Writes the input of Zensical to a folder, which may exist."""
    names = tracked(root)
    documents = pages(root, names)
    exists = {page.path for page in documents} | {name for name in names if not name.endswith(".md")}
    by_path = {page.path: page for page in documents}
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "pages"
    linked = linked_files(documents, exists)
    drawings = set()
    for name in sorted(linked):
        if name.endswith(".svg") and _DARK.search(drawing := (root / name).read_text(encoding="utf-8")):
            drawings.add(name)
            for theme, text in themes(drawing).items():
                _put(target / f"{name.removesuffix('.svg')}-{theme}.svg", text)
        else:
            _copy(root / name, target / name)
    for page in documents:
        _put(target / page.path, _front_matter(page) + convert(page, exists, drawings))
    for file in (SITE / "assets").iterdir():
        _copy(file, target / "assets" / file.name)
    _copy(MERMAID, target / "assets" / "mermaid.tiny.js")
    sections = navigation(by_path[INDEX])
    for section in sections:
        for entry in next(iter(section.values())):
            for title, path in entry.items():
                if path not in exists:
                    raise SiteError(f"{INDEX}: {title} leads to {path}, which is no page")
    base = (SITE / "zensical.toml").read_text(encoding="utf-8")
    if base.count("nav = []") != 1:
        raise SiteError("docs/site/zensical.toml has no `nav = []`")
    _put(folder / "zensical.toml", base.replace("nav = []", f"nav = {_toml(sections)}"))


def _front_matter(page: Page) -> str:
    """What the page itself does not say of itself."""
    if page.path == "docs/performance/report.md":
        return "---\nsearch:\n  exclude: true\n---\n\n"  # thousands of numbers
    return "---\nhide:\n  - navigation\n---\n\n" if page.path == "README.md" else ""


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def main() -> None:
    """Writes the folder, or says which page is wrong."""
    parser = argparse.ArgumentParser(description="Prepare the documentation for Zensical.")
    parser.add_argument("folder", type=Path)
    try:
        write(parser.parse_args().folder)
    except SiteError as error:
        sys.exit(f"docs_site: {error}")


if __name__ == "__main__":
    main()
