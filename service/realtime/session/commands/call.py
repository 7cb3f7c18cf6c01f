"""`call`: asks the backend a question that the contract declares."""

from __future__ import annotations

from service.core.hooks import Outcome, no_answer
from service.protocol.messages import Call
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Call) -> None:
    """Raises ServiceError: why the gate refuses the call; or HOOK_UNAVAILABLE, as this node does not announce `calls`."""
    node.gate.validate_call(connection.session.identity, command.call, command.data)
    raise no_answer("this call", Outcome.NO_ENDPOINT)
