"""Tokens of the demo: for its own page on this machine, and never for the demo's backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from service.app import Service, running
from service.cli.demo import BOT
from service.contract.load import load
from service.web import demo
from tests.support.harness import settings


@pytest_asyncio.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Asks a service with the demo's routes."""
    config = settings()
    assert config.contract is not None
    routes = demo.routes(tmp_path, tmp_path, lambda user: f"a token for {user}", reserved_users=(BOT,))
    service = Service(config, load(config.contract), extra_routes=routes)
    async with running(service) as (port, _), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session


async def asked(
    http: aiohttp.ClientSession, user: str = "agent-1", method: str = "GET", **headers: str
) -> tuple[int, str]:
    """The status, and the token or the code of the refusal."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.request(method, "/demo/token", params={"user": user}, headers=named) as response:
        assert not any(name.startswith("Access-Control") for name in response.headers)
        body = await response.json(content_type=None)
        return response.status, body.get("token") or body["code"]


async def test_demo_token_for_backend_user_is_refused(http: aiohttp.ClientSession) -> None:
    assert await asked(http) == (200, "a token for agent-1")
    assert await asked(http, BOT) == (403, "forbidden")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[2001:db8::1]",
        "127.0.0.1@evil.example", "evil.example#127.0.0.1",
    ],
)  # fmt: skip
async def test_demo_token_with_foreign_host_is_refused(http: aiohttp.ClientSession, host: str) -> None:
    assert (await asked(http, Host=host))[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.0.0.2", "[::1]:8080"])
async def test_demo_token_with_own_host_is_issued(http: aiohttp.ClientSession, host: str) -> None:
    assert (await asked(http, Host=host))[0] == 200
    assert (await asked(http, Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
    ],
)
async def test_demo_token_for_other_origin_is_refused(http: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    """A page of another program on this machine too."""
    assert await asked(http, Host="localhost:8080", **headers) == (403, "forbidden")
    assert (await asked(http, method="OPTIONS", Host="localhost:8080", **headers))[0] == 405
