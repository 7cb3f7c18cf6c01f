"""Who asks: the client's address, its origin, its credentials. Nothing here trusts a header that it was not told to trust."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from aiohttp import hdrs, web
from multidict import CIMultiDict

from service.core.authority import canonical_origin, same_authority, split_origin
from service.core.identity import Credentials
from service.errors import ErrorCode, ServiceError
from service.web.http.header_list import list_of
from service.web.http_config import HttpConfig

_BEARER = "bearer "
_PATH = re.compile("[/?#]")
"""What ends the authority in an address."""


def client_ip(request: web.BaseRequest, hops: int) -> str:
    """The client's address: the peer's, or with `hops` trusted proxies the entry that the outermost of them appended.

    With fewer entries than hops someone came around the proxies, so the peer itself is the client.
    """
    peer = request.remote or "unknown"
    if hops == 0:
        return peer
    entries = list_of(request.headers, "X-Forwarded-For")
    if len(entries) < hops:
        return peer
    return _address(entries[-hops]) or peer


def _address(entry: str) -> str | None:
    for candidate in (entry, entry.rpartition(":")[0], entry.partition("]")[0].removeprefix("[")):
        try:
            found = ipaddress.ip_address(candidate)
        except ValueError:
            continue
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return str(mapped or found)
    return None


def check_origin(request: web.BaseRequest, edge: HttpConfig) -> None:
    """Raises ServiceError(ORIGIN_REFUSED) if the request comes from a page that may not use this service.

    A request without Origin is no cross-site request of a browser; credentials from a cookie are checked further.
    """
    origin = _origin(request)
    if origin is not None and not _allowed(origin, request, edge):
        raise ServiceError(ErrorCode.ORIGIN_REFUSED, "this Origin is not in the allow-list (setting origins)")


def _origin(request: web.BaseRequest) -> str | None:
    """The Origin; of several, which no browser sends, what is no origin."""
    given = request.headers.getall(hdrs.ORIGIN, None)
    return None if given is None else ", ".join(given)


def _allowed(origin: str, request: web.BaseRequest, edge: HttpConfig) -> bool:
    if edge.origins:
        return "*" in edge.origins or _is_listed(origin, edge)
    parts = split_origin(origin)
    return parts is not None and same_authority(*parts, own_authority(request))


def _is_listed(origin: str, edge: HttpConfig) -> bool:
    return canonical_origin(origin) in edge.origins


def own_authority(request: web.BaseRequest) -> str:
    """The host and port that the client has asked; empty if it does not say. Of a target in absolute form, the target's, and not
    the Host header's (RFC 9112 §3.2.2)."""
    target = request.raw_path
    if target.startswith(("/", "*")):
        return request.headers.get(hdrs.HOST, "")
    return _PATH.split(target.partition("://")[2], maxsplit=1)[0]


def credentials(request: web.BaseRequest, edge: HttpConfig) -> Credentials:
    """What the request carries: a bearer token, else a ticket, else a cookie.

    Raises ServiceError(UNAUTHENTICATED) for an Authorization header of another scheme, and for several of one kind.
    """
    given = request.headers.getall(hdrs.AUTHORIZATION, None)
    if given is not None:
        header = given[0]
        if len(given) > 1 or header[: len(_BEARER)].lower() != _BEARER:
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "Authorization must be: Bearer <token>, once")
        return Credentials(token=header[len(_BEARER) :].strip())
    tickets = parameters(request, "ticket")
    if len(tickets) > 1:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "the parameter ticket is given twice")
    if tickets:
        return Credentials(ticket=tickets[0])
    if edge.cookie is not None and _cookie_counts(request, edge):
        token = _cookies(request).get(edge.cookie)
        if token is not None:
            return Credentials(token=token, from_cookie=True)
    return Credentials()


def parameters(request: web.BaseRequest, name: str) -> list[str]:
    """The values of a parameter of the address, as aiohttp decodes them, at a fraction of the cost where there is nothing to
    decode."""
    target = request.raw_path
    query = target.partition("?")[2]
    if not query:
        return []
    if "%" in query or "+" in query or "#" in target:
        return request.query.getall(name, [])
    found = []
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key == name:
            found.append(value)
    return found


def _cookies(request: web.BaseRequest) -> Mapping[str, str]:
    """The cookies of all Cookie lines: HTTP/2 splits them (RFC 9113 §8.2.3), and not every proxy joins them again."""
    lines = request.headers.getall(hdrs.COOKIE, ())
    if len(lines) > 1:
        headers = CIMultiDict(request.headers)
        headers[hdrs.COOKIE] = "; ".join(lines)
        request = request.clone(headers=headers)
    return request.cookies


def _cookie_counts(request: web.BaseRequest, edge: HttpConfig) -> bool:
    """Browsers send cookies with every site's requests, so only an allowed page's count.

    A same-origin GET carries no Origin; the browser then vouches for it in Sec-Fetch-Site, which pages cannot set.
    """
    origin = _origin(request)
    if origin is not None:
        return _is_listed(origin, edge)
    asked = own_authority(request)
    own = any((parts := split_origin(allowed)) and same_authority(*parts, asked) for allowed in edge.origins)
    return own and request.headers.get("Sec-Fetch-Site") == "same-origin"


def allow_cross_origin(request: web.BaseRequest, response: web.StreamResponse, edge: HttpConfig) -> None:
    """Lets the page that asked read the answer, refusals too: they tell it whether to retry, and hold no secret."""
    origin = _origin(request)
    if origin is None or not origin.isascii():  # RFC 6454 §6.2: the other is no page's, and no header's value
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.VARY] = hdrs.ORIGIN
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Retry-After"
    if edge.cookie is not None and _is_listed(origin, edge):
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"


def preflight(request: web.BaseRequest, methods: str) -> web.Response:
    """Answers a browser's question whether it may ask with an Authorization header."""
    return web.Response(
        status=204,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: methods,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type",
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
        },
    )
