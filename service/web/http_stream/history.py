"""Answers `GET /history` for a client without a connection, and the signed addresses of pages that caches may keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
from aiohttp import hdrs, web
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.core.channel import ChannelKey
from service.core.identity import Right
from service.errors import ServiceError
from service.protocol.messages import Channel, Offset, PageSize
from service.realtime.admission.slots import network_of
from service.realtime.node import Node
from service.realtime.streams.history_reader import CachedPage
from service.web.body import parse_query
from service.web.client_info import add_cors_headers, check_origin, client_ip
from service.web.connect_checks import invalid_ticket
from service.web.http_config import HTTP_CONFIG, NODE, HttpConfig
from service.web.http_stream.credentials import authenticate
from service.web.json_response import json_response
from service.web.problem import problem_response

_PRIVATE: Mapping[str, str] = {hdrs.CACHE_CONTROL: "private, no-store"}
_ANY_ORIGIN: Mapping[str, str] = {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*", "X-Content-Type-Options": "nosniff"}
"""The response to a signed address is the same for every page of the web, and no credentials come with the request."""


class HistoryQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of `GET /history`, as the fields of the command `history`."""

    channel: Channel
    after: Offset | None = None
    before: Offset | None = None
    limit: PageSize = 50


class Page(Struct, frozen=True, omit_defaults=True):
    """The body of a page that caches may keep: nothing in it changes when later events come, except `newer`."""

    channel: str
    epoch: str
    events: list[Raw]
    more: bool | UnsetType = UNSET
    """True if events of the page are left out, because they are large."""
    older: str | None = None
    newer: str | None = None


class NewestPage(Struct, frozen=True, omit_defaults=True):
    """The body of `GET /history`: (epoch, offset, last) is the channel's newest position."""

    channel: str
    epoch: str
    offset: Annotated[int, Meta(ge=0)]
    events: list[Raw]
    more: bool
    last: str | None = None
    older: str | None = None
    newer: str | None = None


async def get_history(request: web.Request) -> web.StreamResponse:
    """Reads history as the user of the request. No cache may keep the response."""
    node, config = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, config.hops))
    response: web.StreamResponse
    try:
        node.admission.requests.check_sender_address(network)
        response = await _read(request, node, config, network)
    except ServiceError as error:
        node.admission.refusals.count(error, "history", network)
        response = problem_response(error)
    add_cors_headers(request, response, config)
    return response


async def _read(request: web.Request, node: Node, config: HttpConfig, network: str) -> web.Response:
    check_origin(request, config)
    client = await authenticate(request, node, config)
    if client.ticket is not None:
        raise invalid_ticket()
    identity = client.identity
    node.admission.check_sender(network, identity, node.cluster.membership.node_count)
    query = parse_query(request, HistoryQuery)
    spec = node.gate.authorise(identity, query.channel, Right.HISTORY).spec
    await node.decisions.wait_for_read(identity, query.channel, Right.HISTORY)
    channel = ChannelKey(identity.tenant, query.channel)
    part = await node.streams.history.read(channel, spec, query.after, query.before, query.limit)
    newest = part.position
    body = NewestPage(
        query.channel, newest.epoch, newest.offset, part.events, part.has_more, newest.id, part.older, part.newer
    )
    return json_response(msgspec.json.encode(body), node.streams.budget.account(identity.tenant), _PRIVATE)


async def get_page(request: web.Request) -> web.StreamResponse:
    """Reads the page of a signed address. It reads no credentials, and every response is the same for everybody."""
    node, config = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, config.hops))
    outcome = "refused"
    response: web.Response
    try:
        node.admission.requests.check_sender_address(network)
        address = node.streams.history.verify(_path(request))
        node.admission.check_page(network, address.tenant)
        response = _answer(request, node, await node.streams.history.read_page(address))
        outcome = "served" if response.status == 200 else "not_modified"
    except ServiceError as error:
        node.admission.refusals.count(error, "history", network)
        response = problem_response(error)
    finally:
        node.runtime.metrics.subscriptions.history_pages.labels(outcome).inc()
    response.headers.update(_ANY_ORIGIN)
    return response


def _path(request: web.Request) -> str:
    """Returns the path as the client has written it, also of a target in absolute form."""
    target = request.raw_path
    return target if target.startswith("/") else "/" + target.partition("://")[2].partition("/")[2]


def _answer(request: web.Request, node: Node, page: CachedPage) -> web.Response:
    part = page.part
    body = msgspec.json.encode(
        Page(page.channel.name, part.position.epoch, part.events, part.has_more or UNSET, part.older, part.newer)
    )
    tag = hashlib.blake2b(body, digest_size=12).hexdigest()
    headers: dict[str, str] = {
        hdrs.ETAG: f'"{tag}"',
        # A cache asks again after `max-age`, and shows nothing without an answer: the event may have been taken back.
        hdrs.CACHE_CONTROL: f"public, max-age={page.max_age}, must-revalidate",
    }
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return json_response(body, node.streams.budget.account(page.channel.tenant), headers)
