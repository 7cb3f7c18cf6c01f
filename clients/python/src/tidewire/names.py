"""Names of channels."""

from __future__ import annotations

from urllib.parse import quote


def encode_user(user: str) -> str:
    """Returns the segment of channel names for a user, where the contract has `{user}`.

    `f"inbox:{encode_user('auth0|ann')}"` is `inbox:auth0%7Cann`.
    """
    return quote(user, safe="@=+~")


def path_segment(name: str) -> str:
    """Encodes a name as one segment of a path."""
    return quote(name, safe="")
