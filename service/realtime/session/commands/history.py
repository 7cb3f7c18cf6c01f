"""`history`: a page of durable events."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw

from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.identity import Right
from service.protocol.messages import History, HistoryPage
from service.realtime.connections.connection import Connection
from service.realtime.connections.frame import encode_event
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: History) -> None:
    """Replies with `history`: a page of at most `outbox.recovery_bytes`. `more` is true if another page follows."""
    identity = connection.session.identity_in(command.channel)
    node.gate.authorise(identity, command.channel, Right.HISTORY)
    page = await node.broker.history(
        ChannelKey(identity.tenant, command.channel), command.after, command.before, command.limit
    )
    events = encode_page(page.events, node.bounds.outbox.recovery_bytes, newest_first=command.after is None)
    connection.reply(
        HistoryPage(
            id=command.id,
            channel=command.channel,
            epoch=page.position.epoch,
            offset=page.position.offset,
            last=page.position.id,
            events=events,
            more=page.has_more or len(events) < len(page.events),
        )
    )


def encode_page(events: Sequence[Event], max_bytes: int, *, newest_first: bool) -> list[Raw]:
    """Encodes the newest or the oldest events that fit into `max_bytes` together, but at least one."""
    encoded: list[Raw] = []
    size = 0
    for event in reversed(events) if newest_first else events:
        payload = encode_event(event)
        size += len(payload)
        if encoded and size > max_bytes:
            break
        encoded.append(Raw(payload))
    return encoded[::-1] if newest_first else encoded
