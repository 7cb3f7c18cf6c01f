"""What is due when a token expires: notice before, the end after."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from service.protocol.close import CloseCode
from service.protocol.messages import Expiring
from service.realtime.connection import Connection

if TYPE_CHECKING:
    from service.realtime.node import Node


def arm(node: Node, connection: Connection) -> None:
    """Sets the timers for the session's token, in place of those for the one before."""
    for timer in connection.timers:
        timer.cancel()
    connection.timers.clear()
    left = seconds_left(node, connection)
    if left is None:
        return
    deadlines = node.bounds.deadlines
    connection.timers = [
        node.clock.call_later(max(0.0, left - deadlines.expiry_notice), partial(_notify, node, connection)),
        node.clock.call_later(
            max(0.0, left + deadlines.expiry_grace),
            partial(connection.close, CloseCode.UNAUTHORIZED, "the token has expired"),
        ),
    ]


def seconds_left(node: Node, connection: Connection) -> float | None:
    """Seconds until the session's token expires; None if it never does."""
    expires_at = connection.session.identity.expires_at
    return None if expires_at is None else expires_at - node.clock.wall()


def _notify(node: Node, connection: Connection) -> None:
    connection.reply(Expiring(seconds=max(0, round(seconds_left(node, connection) or 0))))
