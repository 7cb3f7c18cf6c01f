"""`ready`: the screen can take deliveries."""

from __future__ import annotations

from service.protocol.messages import Ready
from service.realtime.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Ready) -> None:
    """Sends one `subscribed` for every held subscription; the second time nothing."""
    session = connection.session
    if session.ready:
        return
    session.ready = True
    for subscription in list(session.subscriptions.values()):
        await node.subscriptions.present(connection, subscription)
