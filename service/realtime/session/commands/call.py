"""`call`: asks the backend a question that the contract declares. The client's later messages do not wait for the answer."""

from __future__ import annotations

from functools import partial

from service.contract.model import CallSpec
from service.core.hooks import CallQuestion
from service.errors import ServiceError
from service.protocol.messages import Call, Reply
from service.realtime.connections.byte_budget import overloaded
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.error_reply import reply_error, reply_fault


def handle(node: Node, connection: Connection, command: Call) -> None:
    """Starts the call. Its `reply`, or its `error`, comes later."""
    identity, name, transport = connection.session.identity, command.call, connection.transport
    spec = node.calls.check(identity, name, command.data)
    data = bytes(command.data)
    if not transport.account.has_capacity(len(data)):
        raise overloaded()
    sender = identity.user or f"anonymous-{connection.id}"
    question = CallQuestion(identity.tenant, identity.user, sender, connection.id, command.id, name, data)
    work = partial(_answer, node, connection, spec, question)
    task = node.calls.start(connection, command.id, name, work, partial(_refuse, node, connection, command.id))
    transport.count_held(len(data))
    task.add_done_callback(lambda _: transport.count_held(-len(data)))


async def _answer(node: Node, connection: Connection, spec: CallSpec, question: CallQuestion) -> None:
    transport = connection.transport
    try:
        reply = Reply(question.id, await node.calls.ask(spec, question))
        size = len(reply.data)
        transport.count_held(size)
        try:
            await connection.wait_writable()  # a reply can be large, and replies are never dropped
        finally:
            transport.count_held(-size)
        connection.reply(reply)
    except ServiceError as error:
        _refuse(node, connection, question.id, error)
    except Exception as fault:
        reply_fault(node, connection, fault, question.id)


def _refuse(node: Node, connection: Connection, request: str, error: ServiceError) -> None:
    reply_error(node, connection, error, request)
