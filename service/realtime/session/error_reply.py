"""Tells a connection why a message of it has failed."""

from __future__ import annotations

import secrets

import structlog

from service.errors import ErrorCode, ServiceError
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.handshake import error_message

_log = structlog.get_logger("session")


def reply_error(node: Node, connection: Connection, error: ServiceError, request: str | None) -> None:
    """Sends a refusal. `request`: the id of the message, if it has one."""
    node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
    connection.reply(error_message(error, request))


def reply_fault(node: Node, connection: Connection, fault: Exception, request: str | None) -> None:
    """Logs a fault of the service, and sends its incident id."""
    incident = secrets.token_hex(8)
    _log.error("command_failed", incident=incident, connection=connection.id, exc_info=fault)
    reply_error(
        node, connection, ServiceError(ErrorCode.INTERNAL, "a fault in the service", incident=incident), request
    )
