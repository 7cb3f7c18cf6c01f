"""Random ids for events, connections and nodes."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from hashlib import blake2b

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


RANDOM_CHARS, TAG_BYTES = 16, 6
CONNECTION_ID_CHARS = 24
assert CONNECTION_ID_CHARS == RANDOM_CHARS + TAG_BYTES * 8 // 6, "base64 writes 6 bits as a character"  # noqa: S101  # a bound


def new_connection_id(tenant: str, user: str) -> str:
    """Returns a new id for a connection of a user: 96 random bits, and a tag that binds them to the user.

    With the tag, every node can check whose connection an id names, without asking the node of the connection. It needs no
    secret: an id that somebody makes up names no connection.
    """
    random = new_id()
    return random + _owner_tag(random, tenant, user)


def is_connection_of(id: str, tenant: str, user: str) -> bool:
    """Whether an id can be that of a connection of this user."""
    return len(id) == CONNECTION_ID_CHARS and id[RANDOM_CHARS:] == _owner_tag(id[:RANDOM_CHARS], tenant, user)


def _owner_tag(random: str, tenant: str, user: str) -> str:
    digest = blake2b(f"{random}{tenant}\n{user}".encode(), digest_size=TAG_BYTES).digest()
    return urlsafe_b64encode(digest).decode()
