"""Who asks: the client's address, its origin, its credentials. Nothing here trusts a header that it was not told to trust."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from service.core.identity import Credentials
from service.errors import ErrorCode, ServiceError
from service.web.edge import Edge

_BEARER = "bearer "


def client_ip(request: web.BaseRequest, hops: int) -> str:
    """The client's address: the peer's, or with `hops` trusted proxies the entry that the outermost of them appended.

    With fewer entries than hops someone came around the proxies, so the peer itself is the client.
    """
    peer = request.remote or "unknown"
    if hops == 0:
        return peer
    entries = [entry.strip() for value in request.headers.getall("X-Forwarded-For", []) for entry in value.split(",")]
    if len(entries) < hops:
        return peer
    return _address(entries[-hops]) or peer


def _address(entry: str) -> str | None:
    for candidate in (entry, entry.rpartition(":")[0], entry.partition("]")[0].removeprefix("[")):
        try:
            return str(ipaddress.ip_address(candidate))
        except ValueError:
            continue
    return None


def check_origin(request: web.BaseRequest, edge: Edge) -> None:
    """Raises ServiceError(ORIGIN_REFUSED) if the request comes from a page that may not use this service.

    A request without Origin is no cross-site request of a browser; credentials from a cookie are checked further.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and not _allowed(origin, request, edge):
        raise ServiceError(ErrorCode.ORIGIN_REFUSED, "this Origin is not in the allow-list (setting origins)")


def _allowed(origin: str, request: web.BaseRequest, edge: Edge) -> bool:
    if edge.origins:
        return origin in edge.origins or "*" in edge.origins
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:  # a bracket that nothing closes, or characters that no host has
        return False


def credentials(request: web.BaseRequest, edge: Edge) -> Credentials:
    """What the request carries: a bearer token, else a ticket, else a cookie.

    Raises ServiceError(UNAUTHENTICATED) for an Authorization header of another scheme.
    """
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is not None:
        if not header.lower().startswith(_BEARER):
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "Authorization must be: Bearer <token>")
        return Credentials(token=header[len(_BEARER) :].strip())
    if "ticket" in request.query:
        return Credentials(ticket=request.query["ticket"])
    if edge.cookie is not None and edge.cookie in request.cookies and _cookie_counts(request, edge):
        return Credentials(token=request.cookies[edge.cookie], from_cookie=True)
    return Credentials()


def _cookie_counts(request: web.BaseRequest, edge: Edge) -> bool:
    """Browsers send cookies with every site's requests, so only an allowed page's count.

    A same-origin GET carries no Origin; the browser then vouches for it in Sec-Fetch-Site, which pages cannot set.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None:
        return origin in edge.origins
    own = any(urlsplit(allowed).netloc == request.host for allowed in edge.origins)
    return own and request.headers.get("Sec-Fetch-Site") == "same-origin"


def allow_cross_origin(request: web.BaseRequest, response: web.StreamResponse, edge: Edge) -> None:
    """Lets the page that asked read the answer, refusals too: they tell it whether to retry, and hold no secret."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not origin.isascii():  # RFC 6454 §6.2: the other is no page's, and no header's value
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.VARY] = hdrs.ORIGIN
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Retry-After"
    if edge.cookie is not None and origin in edge.origins:
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
