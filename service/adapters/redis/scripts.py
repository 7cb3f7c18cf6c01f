"""The Lua scripts, as Redis knows them: by the SHA-1 of their text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and the name that EVALSHA calls it by."""

    text: str
    sha: str


def load(*names: str) -> Script:
    """The files of those names, one after another, as one script."""
    text = "\n".join((_FOLDER / f"{name}.lua").read_text("utf-8") for name in names)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PUBLISH = load("channel", "publish")
SNAPSHOT = load("channel", "snapshot")
HISTORY = load("channel", "history")
MARK = load("channel", "mark")
LISTED = load("channel", "listed")
CHANNEL_SCRIPTS = (PUBLISH, SNAPSHOT, HISTORY, MARK, LISTED)
"""What the broker runs; all begin with channel.lua."""
