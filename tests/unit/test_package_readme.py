"""scripts/package_readme.py: the README of a package where the repository is not beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.package_readme import published

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "clients/js/README.md", "clients/python/README.md")
TEXT = "[a](../../docs/a.md#b) [c](#c) [d](https://d.e) ![f](f.svg)"


def test_links_lead_to_the_repository() -> None:
    assert published(TEXT, "clients/js", "https://x.y/z", "v1") == (
        "[a](https://x.y/z/blob/v1/docs/a.md#b) [c](#c) [d](https://d.e) ![f](https://x.y/z/raw/v1/clients/js/f.svg)"
    )


def test_links_become_paths_without_a_repository() -> None:
    assert published(TEXT, "clients/js", "", "v1") == ("a (`docs/a.md` in the repository) [c](#c) [d](https://d.e) *f*")


@pytest.mark.parametrize("readme", READMES)
@pytest.mark.parametrize("repository", ["", "https://x.y/z"])
def test_readme_has_no_relative_link(readme: str, repository: str) -> None:
    text = published((ROOT / readme).read_text(encoding="utf-8"), str(Path(readme).parent), repository, "v1")
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)|(?:src|srcset)=\"(?!https?:)", text) == []
