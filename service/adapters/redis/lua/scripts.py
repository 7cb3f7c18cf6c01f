"""Loads the Lua scripts. Redis knows each by the SHA-1 of its text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and its name for EVALSHA."""

    text: str
    sha: str


def load(*names: str) -> Script:
    """Returns the files of those names, one after another, as one script."""
    text = "\n".join((_FOLDER / f"{name}.lua").read_text("utf-8") for name in names)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _on_channel(*names: str) -> Script:
    return load("channel", *names)


PUBLISH = _on_channel("values", "publish")
SNAPSHOT = _on_channel("empty", "values", "removed", "pages", "snapshot")
HISTORY = _on_channel("empty", "removed", "pages", "history")
STREAM_HEAD = _on_channel("stream_head")
CHANNEL_INFO = _on_channel("values", "channel_info")
RENEW_EMPTY = _on_channel("empty", "renew_empty")
REMOVE = _on_channel("removed", "remove")
PURGE = _on_channel("purge")
TERM = load("term")
CHANNEL_SCRIPTS = (PUBLISH, SNAPSHOT, HISTORY, STREAM_HEAD, CHANNEL_INFO, RENEW_EMPTY, REMOVE, PURGE)
"""The scripts of the broker; all begin with channel.lua."""
INDEX_UPDATE = load("index_update")
INDEX_SETTLE = load("index_settle")
