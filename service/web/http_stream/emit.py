"""Answers `POST /emit`: publishes an event as the user of the request, without a connection."""

from __future__ import annotations

import msgspec
from aiohttp import hdrs, web
from msgspec import Raw

from service.core.broker import PublishResult
from service.core.channel import channel_key
from service.core.identity import Identity, Right
from service.core.presence import PRESENCE_UPDATE
from service.core.receipt import Receipt
from service.core.session import Subscription
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Ack
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import HeldBytes
from service.realtime.node import Node
from service.web.body import data_of, read_json
from service.web.client_info import add_cors_headers, check_origin, client_ip
from service.web.http_config import HTTP_CONFIG, NODE
from service.web.http_stream.credentials import authenticate
from service.web.http_stream.requests import EmitRequest, parse_emit
from service.web.problem import problem_response


async def emit(request: web.Request) -> web.StreamResponse:
    """Publishes the event in the body. The response is `ack`, or problem details."""
    node, config = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, config.hops))
    try:
        node.admission.requests.check_sender_address(network)
        check_origin(request, config)
        client = await authenticate(request, node, config)
        nodes = node.cluster.membership.node_count
        node.admission.check_sender(network, client.identity, nodes)
        body = await _read(request, node, client.identity)
        ack = await _publish(node, client.identity, body)
        response = web.Response(
            body=msgspec.json.encode(ack), content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"}
        )
    except ServiceError as error:
        node.admission.refusals.count(error, "emit", network)
        response = problem_response(error)
    add_cors_headers(request, response, config)
    return response


async def _read(request: web.Request, node: Node, identity: Identity) -> EmitRequest:
    holding = HeldBytes(node.streams.budget.account(identity.tenant))
    try:
        body = await read_json(request, node.bounds, node.runtime.metrics, holding)
        emitted = parse_emit(body)
    finally:
        holding.release()
    check_size(node, data_of(emitted.data, removed=emitted.removed is True))
    node.runtime.metrics.messages.count_in(emitted.type, len(body))
    return emitted


def check_size(node: Node, data: bytes | Raw) -> None:
    """Raises ServiceError(TOO_BIG) for data that no message can have."""
    limit = node.bounds.limits.message_bytes
    if memoryview(data).nbytes > limit:
        node.runtime.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        raise ServiceError(ErrorCode.TOO_BIG, f"data has at most {limit} bytes", path="$.data", limit=limit)


async def _publish(node: Node, identity: Identity, emitted: EmitRequest) -> Ack:
    receipt = None if emitted.receipt is None else node.cluster.receipts.check(emitted.receipt, identity)
    subscription = None if receipt is None else _find_subscription(node, identity, receipt, emitted.channel)
    if emitted.type == PRESENCE_UPDATE and emitted.removed is not True:
        return await _update_presence(node, identity, emitted, receipt, subscription)
    result = node.publisher.publish(
        identity,
        channel=emitted.channel,
        type=emitted.type,
        data=data_of(emitted.data, removed=emitted.removed is True),
        id=emitted.id,
        key=emitted.key,
        sender=sender_of(identity, receipt),
        subscription=subscription,
        removed=emitted.removed is True,
        if_rev=emitted.if_rev,
        connection=None if receipt is None else receipt.session,
    )
    if not isinstance(result, PublishResult):
        result = await result
    return Ack(emitted.id, result.offset, result.state_version, result.duplicate)


async def _update_presence(
    node: Node, identity: Identity, emitted: EmitRequest, receipt: Receipt | None, subscription: Subscription | None
) -> Ack:
    for name in ("key", "if_rev"):
        if getattr(emitted, name) is not None:
            raise ServiceError(ErrorCode.INVALID_MESSAGE, f"{PRESENCE_UPDATE} has no {name}", path=f"$.{name}")
    data, session = data_of(emitted.data, removed=False), "" if receipt is None else receipt.session
    await node.streams.presence_updates.update_at_once(identity, emitted.channel, data, session, subscription)
    return Ack(emitted.id)


def sender_of(identity: Identity, receipt: Receipt | None) -> str:
    """Returns the sender that others see: the same as over the session's connection. Raises ServiceError(INVALID_RECEIPT)."""
    if not identity.is_anonymous:
        return identity.user
    if receipt is None:
        raise ServiceError(
            ErrorCode.INVALID_RECEIPT, "an anonymous client shows the receipt of its stream", path="$.receipt"
        )
    return f"anonymous-{receipt.session}"


def _find_subscription(node: Node, identity: Identity, receipt: Receipt, channel: str) -> Subscription | None:
    # The request's token may be newer than the receipt, and allow less.
    is_subscribed = node.cluster.receipts.is_subscribed(receipt, channel) and node.gate.allows(
        identity, channel, Right.SUBSCRIBE
    )
    return Subscription(channel_key(identity.tenant, channel), None) if is_subscribed else None
