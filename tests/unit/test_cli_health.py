"""`tidewire health`, which a container's health check is."""

from __future__ import annotations

import asyncio
import os

import pytest

from service.__main__ import main
from tests.stores.process import free_port
from tests.support.harness import serving


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TIDEWIRE_")]:
        monkeypatch.delenv(name)


async def asked(*arguments: str) -> int:
    """The exit status of `tidewire health`, beside a service on this loop."""
    return await asyncio.to_thread(main, ["health", *arguments])


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_health_of_serving_node_succeeds(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving() as server:
        monkeypatch.setenv("TIDEWIRE_OPS_PORT", server.ops_url.rpartition(":")[2])
        monkeypatch.setenv("TIDEWIRE_OPS_HOST", host)
        assert await asked() == 0
        assert await asked("--ready") == 0
    assert capsys.readouterr() == ("", "")


async def test_health_of_draining_node_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving() as server:
        monkeypatch.setenv("TIDEWIRE_OPS_PORT", server.ops_url.rpartition(":")[2])
        await server.service.node.lifecycle.drain()
        assert await asked() == 0
        assert await asked("--ready") == 1
    assert "/readyz at 127.0.0.1 port" in (said := capsys.readouterr().err)
    assert "answered 503" in said


async def test_health_asks_each_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as server:
        port = int(server.ops_url.rpartition(":")[2])
        monkeypatch.setenv("TIDEWIRE_OPS_PORT", str(port - 1))
        monkeypatch.setenv("TIDEWIRE_WORKERS", "2")
        monkeypatch.setenv("TIDEWIRE_PORT", str(free_port()))
        monkeypatch.setenv("TIDEWIRE_BROKER__URL", "redis://127.0.0.1:6379")
        assert await asked() == 1
    assert f"no answer for /healthz at 127.0.0.1 port {port - 1}: " in (said := capsys.readouterr().err)
    assert str(port) not in said


async def test_health_without_service_fails_with_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        monkeypatch.setenv("TIDEWIRE_OPS_PORT", str(server.sockets[0].getsockname()[1]))
        assert await asked() == 1
    assert "no answer for /healthz" in capsys.readouterr().err
