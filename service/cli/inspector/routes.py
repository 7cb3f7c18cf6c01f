"""What the inspector's page asks for: a lab, tokens for it, and faults. For this machine only."""

from __future__ import annotations

from aiohttp import hdrs, web

from service.cli.inspector.lab import Labs, describe
from service.web.client_info import request_authority
from service.web.demo import check_local

_HEADERS = {hdrs.CACHE_CONTROL: "no-store"}


def routes(labs: Labs) -> list[web.AbstractRouteDef]:
    """Routes below `/demo/labs`. All refuse requests of other pages and machines, as those for demo tokens do."""

    async def start(request: web.Request) -> web.StreamResponse:
        check_local(request)
        origin = request.headers.get(hdrs.ORIGIN, f"http://{request_authority(request)}")
        return web.json_response(describe(await labs.open(origin)), headers=_HEADERS)

    async def show(request: web.Request) -> web.StreamResponse:
        check_local(request)
        lab = labs.find(request.match_info["lab"])
        return web.json_response({"published": lab.published}, headers=_HEADERS)

    async def end(request: web.Request) -> web.StreamResponse:
        check_local(request)
        await labs.end(request.match_info["lab"])
        return web.json_response({}, headers=_HEADERS)

    async def token(request: web.Request) -> web.StreamResponse:
        check_local(request)
        return web.json_response({"token": labs.find(request.match_info["lab"]).token()}, headers=_HEADERS)

    async def play(request: web.Request) -> web.StreamResponse:
        check_local(request)
        lab = labs.find(request.match_info["lab"])
        await lab.play(request.match_info["fault"])
        return web.json_response({"published": lab.published}, headers=_HEADERS)

    return [
        web.post("/demo/labs", start),
        web.get("/demo/labs/{lab}", show),
        web.delete("/demo/labs/{lab}", end),
        web.get("/demo/labs/{lab}/token", token),
        web.post("/demo/labs/{lab}/faults/{fault}", play),
    ]
