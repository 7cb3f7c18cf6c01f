"""The logs of an outage of NATS: its start and its end, not each try."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.errors import ServiceError
from tests.contract.nats_stage import config, running
from tests.stores import NatsServer
from tests.stores.process import until
from tests.support.clock import FakeClock


async def test_nats_outage_is_logged_at_start_and_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsServer() as server, running(config(server), FakeClock()) as (broker, _):
        with capture_logs() as logs:
            server.kill()
            tries, connect = 0, asyncio.open_connection

            async def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal tries
                tries += 1
                return await connect(*arguments, **options)

            monkeypatch.setattr(asyncio, "open_connection", counted)
            async with asyncio.timeout(30):
                while tries < 5:  # noqa: ASYNC110  # nothing tells of a try
                    await asyncio.sleep(0.02)
            await server.restart()

            async def is_back() -> bool:
                with suppress(ServiceError):
                    await broker.check()
                    return True
                return False

            await until(is_back, "the connection is back", within=30)
        events = [entry["event"] for entry in logs]
        assert (events[0], events[-1]) == ("nats_disconnected", "nats_connected")
        assert 1 <= events.count("nats_connect_failed") <= 2, "each reason once"
        assert logs[-1]["seconds"] > 0
