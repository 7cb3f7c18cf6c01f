"""The pages and tokens of the demos, served only in demo mode. Tokens are for this machine only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Container
from pathlib import Path

from aiohttp import hdrs, web

from service.core.authority import parse_authority, same_authority, split_origin
from service.errors import ErrorCode, ServiceError
from service.web.client_info import request_authority

_INDEX = "index.html"
_USER = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_POLICY = (
    "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-cache",
}
_INSPECTOR_HEADERS = _HEADERS | {"Content-Security-Policy": _POLICY.replace("wss:;", "wss: http://127.0.0.1:*;")}
"""The inspector's page reaches its nodes on other ports of this machine, also over HTTP."""


def routes(
    demo: Path, client: Path, issue_token: Callable[[str], str], reserved_users: Container[str] = ()
) -> list[web.AbstractRouteDef]:
    """Routes for the start page at ``/``, the demos, the JavaScript client, and tokens for made-up agents.

    `demo` and `client` are folders; `issue_token` signs a token for a user. No token is issued for a user in
    `reserved_users`.
    """

    pages = demo / "pages"

    async def start(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(pages / "start" / "index.html", headers=_HEADERS)

    async def contract(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(demo / "contract.yaml", headers=_HEADERS)

    async def token(request: web.Request) -> web.StreamResponse:
        check_local(request)
        user = request.query.get("user", "")
        if not _USER.fullmatch(user):
            raise ServiceError(
                ErrorCode.INVALID_REQUEST, "user is 1 to 32 lower-case letters, digits and -", parameter="user"
            )
        if user in reserved_users:
            raise ServiceError(ErrorCode.FORBIDDEN, "this user is the demo's backend; choose another", parameter="user")
        return web.json_response({"token": issue_token(user)}, headers=_HEADERS | {hdrs.CACHE_CONTROL: "no-store"})

    return [
        web.get("/", start),
        web.get("/demo/token", token),
        web.get("/demo/contract.yaml", contract),
        web.get("/demo/{file:.+}", _files(pages)),
        web.get("/client/{file:.+}", _files(client)),
    ]


def _files(folder: Path) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Serves the files that the folder holds now, and no other path, each with the pages' headers.

    A path that ends with a slash is that of the index of a folder.
    """
    known = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    known |= {name.removesuffix(_INDEX): path for name, path in known.items() if name.endswith(f"/{_INDEX}")}

    async def send(request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        path = known.get(name)
        if path is None and f"{name}/" in known:  # its files have relative addresses
            return web.Response(status=308, headers=_HEADERS | {hdrs.LOCATION: f"/demo/{name}/"})
        if path is None:
            raise ServiceError(ErrorCode.NOT_FOUND, "there is no such file")
        return web.FileResponse(path, headers=_INSPECTOR_HEADERS if name.startswith("inspector/") else _HEADERS)

    return send


def check_local(request: web.Request) -> None:
    """Refuses requests that a page of another site makes through a visitor's browser, so that it cannot obtain a token.

    Such a page sends a cross-origin request, or uses a host name of its own that resolves to this machine (DNS
    rebinding). So peer and Host must be this machine, and the page must be the demo's.
    """
    host = request_authority(request)
    authority = parse_authority(host)
    is_local = authority is not None and (authority.host == "localhost" or _is_loopback(authority.host.strip("[]")))
    if not is_local or not _is_loopback(request.remote or "") or not _is_own_page(request, host):
        raise ServiceError(ErrorCode.FORBIDDEN, "demo tokens are for this machine alone; open http://127.0.0.1")


def _is_own_page(request: web.Request, host: str) -> bool:
    """Whether a browser's request comes from the demo's page or the address bar. Other programs send neither header.

    Another port is another origin, although browsers call it the same site.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and ((parts := split_origin(origin)) is None or not same_authority(*parts, host)):
        return False
    return request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
