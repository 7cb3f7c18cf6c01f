#!/usr/bin/env python3
"""Writes a README as a package registry shows it: without the repository beside it.

    scripts/package_readme.py clients/js/README.md build/dist/npm/README.md https://git.example.com/tidewire v1.2.3

PyPI and npm show the README of a package, and links to other files of the repository lead nowhere there. So they get the
address of the repository. If that is unknown, the text of the link stays, with the path in words. hatch-fancy-pypi-readme
replaces text by patterns too, but knows no address from outside, and nothing of npm.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<file>[^)#\s]+)(?P<fragment>#[^)\s]*)?\)")
_PICTURE = re.compile(r"<picture>.*?<img alt=\"([^\"]*)\" src=\"([^\"]+)\">.*?</picture>", re.DOTALL)


def published(text: str, folder: str, repository: str, revision: str) -> str:
    """The text of a README in `folder` of the repository, for readers elsewhere. `repository` may be empty."""

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["file"]))
        if link["image"]:
            return f"![{link['text']}]({repository}/raw/{revision}/{path})" if repository else f"*{link['text']}*"
        if repository:
            return f"[{link['text']}]({repository}/blob/{revision}/{path}{link['fragment'] or ''})"
        return f"{link['text']} (`{path}` in the repository)"

    return _LINK.sub(replaced, _PICTURE.sub(r"![\1](\2)", text))


def main(arguments: list[str]) -> None:
    """Writes the file."""
    source, target, repository, revision = arguments
    text = (ROOT / source).read_text(encoding="utf-8")
    Path(target).write_text(
        published(text, posixpath.dirname(source), repository.rstrip("/"), revision), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
