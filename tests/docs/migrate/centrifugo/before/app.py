"""A dashboard on Centrifugo: the page, a token for each viewer, and a new sample for each POST."""

import json
import os
import time
from pathlib import Path

import aiohttp
import jwt
from aiohttp import web

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text())
API = os.environ.get("CENTRIFUGO_API", "http://127.0.0.1:8000/api")
LIBRARY = Path(os.environ.get("LIBRARY", HERE / "../../node_modules/centrifuge/dist/centrifuge.js"))
VIEWERS = {"ann", "ben"}


async def page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(HERE / "index.html")


async def script(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(HERE / "main.js")


async def library(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(LIBRARY)


async def token(request: web.Request) -> web.StreamResponse:
    user = request.query["user"]  # in your application: the user who is logged in
    if user not in VIEWERS:
        raise web.HTTPForbidden
    claims = {"sub": user, "exp": int(time.time()) + 600}
    return web.Response(text=jwt.encode(claims, CONFIG["client"]["token"]["hmac_secret_key"], algorithm="HS256"))


async def sample(request: web.Request) -> web.StreamResponse:
    body = {"channel": "board:main", "data": {"name": "load", "value": (await request.json())["value"]}}
    headers = {"X-API-Key": CONFIG["http_api"]["key"]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{API}/publish", json=body, headers=headers) as response,
    ):
        response.raise_for_status()
    return web.Response()


app = web.Application()
app.add_routes([web.get("/", page), web.get("/main.js", script), web.get("/centrifuge.js", library)])
app.add_routes([web.get("/token", token), web.post("/sample", sample)])
web.run_app(app, host="localhost", port=int(os.environ.get("PORT", "3000")))
