"""What a request says about its client: address, origin, credentials. Headers are trusted only as far as HttpConfig says."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from aiohttp import hdrs, web
from multidict import CIMultiDict

from service.core.authority import canonical_origin, same_authority, split_origin
from service.core.identity import Credentials
from service.errors import ErrorCode, ServiceError
from service.web.http.header_list import header_elements
from service.web.http.plain_request import AnyRequest
from service.web.http_config import HttpConfig

MAX_CACHED_QUERY = 256
"""Characters of a query whose parsed values are kept for the next client with the same one. A query with a ticket is not kept."""
_BEARER_PREFIX = "bearer "
_AUTHORITY_END = re.compile("[/?#]")


def client_ip(request: AnyRequest, hops: int) -> str:
    """The client's address: the peer's; with `hops` trusted proxies, the entry that the outermost proxy appended.

    With fewer entries than hops, the client has bypassed the proxies, and the peer is the client.
    """
    peer = request.remote or "unknown"
    if hops == 0:
        return peer
    entries = header_elements(request.headers, "X-Forwarded-For")
    if len(entries) < hops:
        return peer
    return _parse_address(entries[-hops]) or peer


def _parse_address(entry: str) -> str | None:
    """The address of an entry, which may have a port or brackets; IPv4 if it is mapped into IPv6."""
    for candidate in (entry, entry.rpartition(":")[0], entry.partition("]")[0].removeprefix("[")):
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            continue
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return str(mapped or address)
    return None


def check_origin(request: AnyRequest, config: HttpConfig) -> None:
    """Raises ServiceError(ORIGIN_REFUSED) if the request comes from a page of an origin that is not allowed.

    A request without Origin passes: browsers send Origin with every WebSocket and every cross-site POST.
    `parse_credentials` also checks cookies.
    """
    origin = _parse_origin(request)
    if origin is not None and not _is_allowed(origin, request, config):
        raise ServiceError(ErrorCode.ORIGIN_REFUSED, "this Origin is not in the allow-list (setting origins)")


def check_post_origin(request: AnyRequest, config: HttpConfig) -> None:
    """Raises ServiceError(ORIGIN_REFUSED) unless the request names an origin of the explicit list. For a POST with a cookie."""
    origin = _parse_origin(request)
    if origin is None or not _is_listed(origin, config):
        raise ServiceError(ErrorCode.ORIGIN_REFUSED, "a POST with a cookie needs an Origin from the allow-list")


def _parse_origin(request: AnyRequest) -> str | None:
    """The Origin header. Several, which no browser sends, are joined to a value that no allow-list matches."""
    lines = request.headers.getall(hdrs.ORIGIN, None)
    return None if lines is None else ", ".join(lines)


def _is_allowed(origin: str, request: AnyRequest, config: HttpConfig) -> bool:
    if config.origins:
        return "*" in config.origins or _is_listed(origin, config)
    parts = split_origin(origin)
    return parts is not None and same_authority(*parts, request_authority(request))


def _is_listed(origin: str, config: HttpConfig) -> bool:
    return canonical_origin(origin) in config.origins


def request_authority(request: AnyRequest) -> str:
    """The host and port that the request is for; empty if it has none.

    A target in absolute form takes precedence over the Host header (RFC 9112 §3.2.2).
    """
    target = request.raw_path
    if target.startswith(("/", "*")):
        return request.headers.get(hdrs.HOST, "")
    return _AUTHORITY_END.split(target.partition("://")[2], maxsplit=1)[0]


def parse_credentials(request: AnyRequest, config: HttpConfig) -> Credentials:
    """The request's credentials: a bearer token, else a ticket, else a cookie.

    Raises ServiceError(UNAUTHENTICATED) for another authentication scheme, and for two of one kind.
    """
    lines = request.headers.getall(hdrs.AUTHORIZATION, None)
    if lines is not None:
        header = lines[0]
        if len(lines) > 1 or header[: len(_BEARER_PREFIX)].lower() != _BEARER_PREFIX:
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "Authorization must be: Bearer <token>, once")
        return Credentials(token=header[len(_BEARER_PREFIX) :].strip())
    tickets = query_values(request, "ticket")
    if len(tickets) > 1:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "the parameter ticket is given twice")
    if tickets:
        return Credentials(ticket=tickets[0])
    if config.cookie is not None and _accepts_cookie(request, config):
        token = _parse_cookies(request).get(config.cookie)
        if token is not None:
            return Credentials(token=token, from_cookie=True)
    return Credentials()


def query_values(request: AnyRequest, name: str) -> Sequence[str]:
    """The values of a query parameter, as aiohttp decodes them; much faster where nothing is encoded."""
    target = request.raw_path
    query = target.partition("?")[2]
    if not query:
        return ()
    if "%" in query or "+" in query or "#" in target:
        return request.query.getall(name, [])
    if name not in query:  # checked first because it is cheap
        return ()
    parse = _cached_values if len(query) <= MAX_CACHED_QUERY and "ticket" not in query else _values
    return parse(query, name)


def _values(query: str, name: str) -> Sequence[str]:
    values = []
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key == name:
            values.append(value)
    return tuple(values)


_cached_values = lru_cache(maxsize=1024)(_values)  # many clients have the same address


def _parse_cookies(request: AnyRequest) -> Mapping[str, str]:
    """The cookies of all Cookie lines: HTTP/2 splits them (RFC 9113 §8.2.3), and some proxies do not join them again."""
    lines = request.headers.getall(hdrs.COOKIE, ())
    if len(lines) > 1 and isinstance(request, web.BaseRequest):  # a PlainRequest has no cookies
        headers = CIMultiDict(request.headers)
        headers[hdrs.COOKIE] = "; ".join(lines)
        request = request.clone(headers=headers)
    return request.cookies


def _accepts_cookie(request: AnyRequest, config: HttpConfig) -> bool:
    """Whether the request comes from a page of a listed origin: browsers send cookies with every site's requests.

    A same-origin GET has no Origin. Then the browser states it in Sec-Fetch-Site, which pages cannot set.
    """
    origin = _parse_origin(request)
    if origin is not None:
        return _is_listed(origin, config)
    authority = request_authority(request)
    is_own = any((parts := split_origin(listed)) and same_authority(*parts, authority) for listed in config.origins)
    return is_own and request.headers.get("Sec-Fetch-Site") == "same-origin"


def add_cors_headers(request: AnyRequest, response: web.StreamResponse, config: HttpConfig) -> None:
    """Lets the requesting page read the response, even a refusal, which says whether to retry and holds no secret."""
    origin = _parse_origin(request)
    if origin is None or not origin.isascii():  # RFC 6454 §6.2: an origin is ASCII
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.VARY] = hdrs.ORIGIN
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Retry-After"
    if config.cookie is not None and _is_listed(origin, config):
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"


def preflight_response(methods: str) -> web.Response:
    """The response to a CORS preflight, which browsers send before a request with an Authorization header."""
    return web.Response(
        status=204,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: methods,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, Last-Event-ID",
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
        },
    )
