"""The users of one channel and their connections: the rules of the PresenceStore port, for stores without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.core.presence import PresenceJoin, is_updated


class MemberConnection(NamedTuple):
    """One connection of a user."""

    expiry: int
    """In the store's own unit of time; entries that never expire have 0."""
    info: bytes | None


Members = dict[str, dict[str, MemberConnection]]
"""Users, and the connections of each. The last connection has the user's current info."""


class Effect(NamedTuple):
    """What other members notice of a change."""

    changed: bool
    """Whether the user has joined or left."""
    is_news: bool
    """Whether to publish an event: after a join, a leave, or a change of the user's info."""


def add(members: Members, join: PresenceJoin, expiry: int) -> Effect:
    """Adds a connection, or renews it if it is there."""
    user, connection = join.entry.user, join.entry.connection
    joined = user not in members
    connections = members.setdefault(user, {})
    before = join.info if joined else shown_info(connections)
    known = connections.get(connection)
    new_info = before if join.info is None or is_updated(before) else join.info
    connections[connection] = MemberConnection(expiry, new_info if known is None else known.info)
    return Effect(joined, joined or shown_info(connections) != before)


def update(members: Members, update: PresenceJoin) -> Effect | None:
    """Makes a connection the newest of its user, with other info. None if it is not there."""
    connections = members.get(update.entry.user, {})
    known = connections.get(update.entry.connection)
    if known is None:
        return None
    is_news = shown_info(connections) != update.info
    del connections[update.entry.connection]
    connections[update.entry.connection] = MemberConnection(known.expiry, update.info)
    return Effect(False, is_news)


def remove(members: Members, user: str, connections: Sequence[str]) -> bool | None:
    """Removes connections of a user. True if the user has left with them; None if none of them is there."""
    known = members.get(user, {})
    present = [connection for connection in connections if connection in known]
    if not present:
        return None
    info = shown_info(known)
    for connection in present:
        del known[connection]
    if not known:
        del members[user]
        return True
    newest = next(reversed(known))
    known[newest] = MemberConnection(known[newest].expiry, info)  # the user's info stays
    return False


def shown_info(connections: dict[str, MemberConnection]) -> bytes | None:
    """The info of a user with these connections."""
    return next(reversed(connections.values())).info
