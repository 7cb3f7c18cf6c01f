"""The checks of a new client that WebSockets, streams and polls share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from aiohttp import hdrs, web

from service.contract.model import ChannelSpec
from service.core.backoff import jittered
from service.core.hooks import ClientContext
from service.core.identity import Identity, Right
from service.errors import ErrorCode, ServiceError
from service.protocol.features import NO_ANNOUNCEMENT, Announcement, parse_announcement
from service.realtime.admission.slots import network_of
from service.realtime.node import Node
from service.realtime.session.handshake import NO_CHANNELS
from service.web.client_info import MAX_CACHED_QUERY, add_cors_headers, client_ip, preflight_response, query_values
from service.web.http.plain_request import AnyRequest
from service.web.http_config import HTTP_CONFIG, HttpConfig


def check_limits(request: AnyRequest, node: Node, config: HttpConfig) -> str:
    """Checks what needs no credentials: drain, bytes, rate and caps. Returns the client's network; raises ServiceError."""
    node.admission.check_open()
    if node.streams.budget.is_full:
        node.runtime.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
        raise ServiceError(
            ErrorCode.OVERLOADED, "this node holds too many bytes for its peers", retry_after=jittered(5.0)
        )
    network = network_of(client_ip(request, config.hops))
    node.admission.requests.check_connect(network)
    node.admission.slots.check(network)
    return network


def client_context(request: AnyRequest, config: HttpConfig) -> ClientContext | None:
    """Returns what the hook `connect` may know of a client; None without that hook. Never a cookie or other credentials."""
    names = config.hook_headers
    if names is None:
        return None
    announced = read_announcement(request)
    headers = [(name, request.headers.getall(name, [])) for name in names]
    return ClientContext(
        client_ip(request, config.hops),
        _text(request.headers.get(hdrs.ORIGIN)),
        f"{announced.client}/{announced.version}" if announced.client else "",
        tuple((name, _text(", ".join(lines)) or "") for name, lines in headers if lines),
    )


def _text(value: str | None) -> str | None:
    """Replaces what is no UTF-8, which JSON cannot hold."""
    return None if value is None else value.encode(errors="surrogateescape").decode(errors="replace")


def parse_channels(values: Sequence[str]) -> Sequence[str]:
    """Returns the names in the values of a parameter, separated by commas, each once."""
    text = values[0] if len(values) == 1 else ",".join(values)
    return _cached_names(text) if len(text) <= MAX_CACHED_QUERY else _names(text)


def _names(text: str) -> Sequence[str]:
    return tuple(dict.fromkeys(filter(None, text.split(","))))


_cached_names = lru_cache(maxsize=1024)(_names)  # many clients have the same channels


def authorise_channels(node: Node, identity: Identity, names: Sequence[str]) -> Mapping[str, ChannelSpec]:
    """Returns the channels with their contract. Raises ServiceError if the identity may not subscribe to one."""
    if not names:
        return NO_CHANNELS
    max_channels = node.bounds.limits.subscriptions
    if len(names) > max_channels:
        node.runtime.metrics.limits.limit_hits.labels(limit="subscriptions").inc()
        raise ServiceError(
            ErrorCode.TOO_MANY_SUBSCRIPTIONS, f"a connection has at most {max_channels} channels", limit=max_channels
        )
    channels: dict[str, ChannelSpec] = {}
    for name in names:  # a comprehension would be one more call
        try:
            channels[name] = node.gate.authorise(identity, name, Right.SUBSCRIBE).spec
        except ServiceError as error:  # with the name, so that the client can ask for the others
            raise ServiceError(error.code, error.message, **{**error.details, "channel": name}) from error
    return channels


def read_announcement(request: AnyRequest) -> Announcement:
    """What the client says of itself in the address. Nothing in it refuses an upgrade: what is invalid counts as missing."""
    target = request.raw_path
    # Nothing is announced, which is checked first because it is cheap. With a percent sign, a name may be encoded.
    if "client=" not in target and "contract=" not in target and "features=" not in target and "%" not in target:
        return NO_ANNOUNCEMENT
    client, contract = query_values(request, "client"), query_values(request, "contract")
    return parse_announcement(
        client[0] if len(client) == 1 else "",
        contract[0] if len(contract) == 1 else "",
        ",".join(query_values(request, "features")),
    )


def preflight(request: web.Request, methods: str) -> web.StreamResponse:
    """Returns the response to a CORS preflight of a public path."""
    response = preflight_response(methods)
    add_cors_headers(request, response, request.app[HTTP_CONFIG])
    return response


def invalid_ticket() -> ServiceError:
    """Returns the error for a ticket that opens nothing here."""
    return ServiceError(ErrorCode.INVALID_TICKET, "the ticket is unknown, used or expired; ask for a new one")
