"""Answers `POST /call`: calls the backend as the user of the request, without a connection."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from aiohttp import hdrs, web
from msgspec import Raw

from service.contract.model import CallSpec
from service.core.hooks import CallQuestion
from service.core.identity import Identity
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Reply
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import HeldBytes
from service.realtime.node import Node
from service.web.body import read_json
from service.web.client_info import add_cors_headers, check_origin, client_ip
from service.web.http.http_protocol import HttpProtocol
from service.web.http_config import HTTP_CONFIG, NODE
from service.web.http_stream.credentials import authenticate
from service.web.http_stream.emit import check_size, sender_of
from service.web.http_stream.requests import parse_call
from service.web.json_response import json_response
from service.web.problem import problem_response


async def call(request: web.Request) -> web.StreamResponse:
    """Makes the call in the body. The response is `reply`, or problem details."""
    node, config = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, config.hops))
    try:
        node.admission.requests.check_sender_address(network)
        check_origin(request, config)
        identity = (await authenticate(request, node, config)).identity
        node.admission.check_sender(network, identity, node.cluster.membership.node_count)
        holding = HeldBytes(node.streams.budget.account(identity.tenant))
        try:
            reply = await _call(request, node, identity, network, holding)
        finally:
            holding.release()
        headers: dict[str, str] = {hdrs.CACHE_CONTROL: "no-store"}
        response: web.StreamResponse = json_response(
            msgspec.json.encode(reply),
            node.streams.budget.account(identity.tenant),
            headers,
            stall_timeout=node.bounds.outbox.stall,
        )
    except ServiceError as error:
        node.admission.refusals.count(error, "call", network)
        response = problem_response(error)
    add_cors_headers(request, response, config)
    return response


async def _call(request: web.Request, node: Node, identity: Identity, network: str, holding: HeldBytes) -> Reply:
    """`holding`: counts the body until the call has ended."""
    body = await read_json(request, node.bounds, node.runtime.metrics, holding)
    called = parse_call(body)
    check_size(node, called.data)
    node.runtime.metrics.messages.count_in("call", len(body))
    receipts = node.cluster.receipts
    receipt = None if called.receipt is None else receipts.check(called.receipt, identity)
    spec = node.calls.check(identity, called.call, called.data)
    question = CallQuestion(
        identity.tenant,
        identity.user,
        sender_of(identity, receipt),
        None if receipt is None else receipt.session,
        called.id,
        called.call,
        bytes(called.data),
    )
    data = await _ask(request, node, identity.user or network, spec, question)
    # The token may have been revoked, or the session may have ended, during the wait.
    node.cluster.revocations.check(identity)
    if receipt is not None:
        receipts.check_ended(receipt)
    return Reply(called.id, data)


async def _ask(request: web.Request, node: Node, caller: str, spec: CallSpec, question: CallQuestion) -> Raw:
    """Waits for the answer, as long as the client does. Raises ServiceError. `caller`: whose calls count together."""
    result: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
    refuse = partial(_refuse, result)
    # Two calls with one id are no fault here: each has a response of its own.
    work = partial(_answer, node, spec, question, result)
    task = node.calls.start((question.tenant, caller), object(), spec.name, work, refuse)
    task.add_done_callback(lambda _: refuse(ServiceError(ErrorCode.DEADLINE, "the client has left before the answer")))
    protocol = request.protocol
    try:
        if isinstance(protocol, HttpProtocol):
            protocol.on_end = task.cancel
            if protocol.has_eof or request.transport is None:  # the client has left during the checks
                task.cancel()
        return await result
    finally:
        task.cancel()
        if isinstance(protocol, HttpProtocol):
            protocol.on_end = None


async def _answer(node: Node, spec: CallSpec, question: CallQuestion, result: asyncio.Future[Raw]) -> None:
    try:
        data = await node.calls.ask(spec, question)
    except Exception as error:
        _refuse(result, error)
        return
    if not result.done():
        result.set_result(data)


def _refuse(result: asyncio.Future[Raw], error: Exception) -> None:
    if not result.done():
        result.set_exception(error)
