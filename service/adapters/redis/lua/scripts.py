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


def _on_channel(*names: str) -> Script:
    return load("channel", *names)


PUBLISH = _on_channel("publish")
SNAPSHOT = _on_channel("empty", "snapshot")
HISTORY = _on_channel("empty", "history")
STREAM_HEAD = _on_channel("stream_head")
LISTED = _on_channel("listed")
KEEP = _on_channel("empty", "keep")
REIGN = load("reign")
CHANNEL_SCRIPTS = (PUBLISH, SNAPSHOT, HISTORY, STREAM_HEAD, LISTED, KEEP)
"""What the broker runs; all begin with channel.lua."""
INDEX = load("index")
INDEX_SETTLE = load("index_settle")
