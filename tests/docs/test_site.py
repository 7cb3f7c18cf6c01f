"""The copy of the documentation that becomes the site: what Python-Markdown reads differently, and the navigation."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.docs_site import INDEX, Page, SiteError, convert, navigation, pages, themes, tracked

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = ("docs/runbooks/", "docs/adr/", "clients/js/docs/api/", "docs/performance/")
"""Folders whose pages are found by their own list and by search."""


def converted(text: str) -> str:
    return convert(Page("docs/page.md", text), {"docs/other.md", "docs/adr/README.md", "x.svg"}, {"x.svg"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("- a\n  more\n  - b\n    more", "- a\n    more\n    - b\n        more\n"),
        ("1. a\n\n   ```sh\n   ls\n   ```\n\nText", "1. a\n\n    ```sh\n    ls\n    ```\n\nText\n"),
        ("Text:\n- a\n- b", "Text:\n\n- a\n- b\n"),
        ("# A `b.c`\n## A\n## A", "# A `b.c` { #a-bc }\n## A { #a }\n## A { #a-1 }\n"),
        ("<!-- file: a.py -->\n```python\n# a\n```", '```python title="a.py"\n# a\n```\n'),
        ("<!-- vector: client/hello -->\n```json\n{}\n```", "```json\n{}\n```\n"),
        ("[a](other.md#x) [b](adr) [c](https://a.b)", "[a](other.md#x) [b](adr/README.md) [c](https://a.b)\n"),
        ("![a](../x.svg)", "![a](../x-light.svg#only-light)\n![a](../x-dark.svg#only-dark)\n"),
        (
            '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="d.png">\n  <img alt="A" src="l.png">\n</picture>',
            "![A](l.png#only-light)\n![A](d.png#only-dark)\n",
        ),
    ],
)
def test_page_is_written_as_python_markdown_reads_it(text: str, wanted: str) -> None:
    assert converted(text) == wanted


def test_link_out_of_the_repository_is_an_error() -> None:
    with pytest.raises(SiteError, match=r"docs/page\.md: missing\.md is not in the repository"):
        converted("[a](missing.md)")


def test_drawing_has_a_file_for_each_theme() -> None:
    drawing = "<style>\n  a { b: 1 }\n  @media (prefers-color-scheme: dark) {\n    a { b: 2 }\n  }\n</style>"
    assert themes(drawing) == {
        "light": "<style>\n  a { b: 1 }\n</style>",
        "dark": "<style>\n  a { b: 1 }    a { b: 2 }\n</style>",
    }


def test_every_page_is_in_the_navigation() -> None:
    documents = {page.path: page for page in pages(ROOT, tracked(ROOT))}
    listed = {
        path
        for section in navigation(documents[INDEX])
        for entries in section.values()
        for entry in entries
        for path in entry.values()
    }
    assert listed <= documents.keys()
    missing = {
        path
        for path in documents.keys() - listed
        if path.startswith(("docs/", "clients/")) and not path.startswith(HIDDEN) and path != INDEX
    }
    assert not missing, f"{INDEX} does not list {sorted(missing)}"
