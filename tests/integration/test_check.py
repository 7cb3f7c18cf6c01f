"""`tidewire check --connect` and a start that cannot be: what is wrong, where, and in which setting."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.command import SOON, command
from tests.stores.nats_server import NatsServer
from tests.stores.process import HOST, free_port
from tests.stores.redis_server import RedisServer
from tests.support.harness import API_KEY, CONTRACT, SECRET

pytestmark = pytest.mark.slow

SETTINGS = {"AUTH__SECRET": SECRET, "API__KEY": API_KEY, "CONTRACT": str(CONTRACT), "LOG__FORMAT": "json"}
HASTY = {"BROKER__UNREADY_AFTER": "1"}


@pytest.mark.parametrize("store", [RedisServer, NatsServer])
async def test_check_with_available_broker_succeeds(store: type[RedisServer | NatsServer]) -> None:
    async with store() as server, command("service", "check", "--connect", **SETTINGS, BROKER__URL=server.url) as run:
        assert await run.ended() == 0, run.text()
        assert [entry["level"] for entry in run.log] == ["raw"]
        assert "good" in run.log[0]["event"]


@pytest.mark.parametrize("scheme", ["redis", "nats"])
async def test_check_with_unavailable_broker_reports_it(scheme: str) -> None:
    port = free_port()
    async with command(
        "service", "check", "--connect", **SETTINGS, **HASTY, BROKER__URL=f"{scheme}://{HOST}:{port}"
    ) as run:
        assert await run.ended() == 1
        [entry] = run.log
        assert entry["event"].startswith("broker.url: ")
        assert str(port) in entry["event"]


async def test_check_with_wrong_password_reports_it() -> None:
    async with (
        RedisServer(password="right") as server,
        command(
            "service", "check", "--connect", **SETTINGS, **HASTY, BROKER__URL=server.url, BROKER__PASSWORD="wrong"
        ) as run,
    ):
        assert await run.ended() == 1
        [entry] = run.log
        assert entry["event"].startswith("broker.url: ")
        assert "wrong" not in entry["event"]


async def test_serve_on_unknown_host_reports_it() -> None:
    async with command("service", "serve", **SETTINGS, HOST="nobody.invalid", OPS_PORT="0") as run:
        assert await run.ended() == 1
        [entry] = run.told("listen_failed")
        assert "nobody.invalid port 8080 (settings host and port)" in entry["reason"]
        assert "Unknown error" not in entry["reason"]


@pytest.mark.parametrize(("taken", "names"), [("PORT", "host and port"), ("OPS_PORT", "ops_host and ops_port")])
async def test_serve_on_port_in_use_names_the_settings(taken: str, names: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        ports = {"PORT": "0", "OPS_PORT": "0"} | {taken: str(port)}
        async with asyncio.timeout(SOON), command("service", "serve", **SETTINGS, **ports) as run:
            assert await run.ended() == 1
            [entry] = run.told("listen_failed")
            assert f"Address already in use: {HOST} port {port} (settings {names})" in entry["reason"]
