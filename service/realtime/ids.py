"""Random ids for events, connections and nodes."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from zlib import crc32

_BLOCK = 256
"""Ids made at a time. Most of the cost is the system call, which one block needs once."""
_spare: list[str] = []
os.register_at_fork(after_in_child=_spare.clear)  # else parent and child would return the same ids


def new_id() -> str:
    """Returns a new id of 96 random bits."""
    if not _spare:
        text = urlsafe_b64encode(os.urandom(12 * _BLOCK)).decode()
        _spare.extend(text[start : start + 16] for start in range(0, len(text), 16))
    return _spare.pop()


RANDOM_CHARS = 16
CONNECTION_ID_CHARS = 24
"""The characters of a connection's id: those of `new_id`, and a tag of 8."""


def new_connection_id(user: str) -> str:
    """Returns a new id for a connection of a user: 96 random bits, and a tag of the user.

    By the tag, every node can tell that an id is not that of a connection of another user, without asking the connection's node.
    It is a checksum and guards nothing: the connection's node, and the client, compare tenant and user themselves.
    """
    return f"{new_id()}{crc32(user.encode()):08x}"


def is_connection_of(id: str, user: str) -> bool:
    """Whether an id can be that of a connection of this user."""
    return len(id) == CONNECTION_ID_CHARS and id[RANDOM_CHARS:] == f"{crc32(user.encode()):08x}"
