"""What one delivery ends with, whatever the endpoint answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from service.adapters.clock import SystemClock
from service.adapters.http_backend.signing import Signer
from service.adapters.http_webhooks.sender import MAX_RETRY_AFTER, EndpointConfig, HttpEndpoint, HttpWebhooks
from service.core.webhooks import DeliveryOutcome, DeliveryReply
from tests.support.backend import SECRET
from tests.support.receiver import receiving

BODY = b'{"endpoint":"archive","tenant":"default","entries":[]}'


def sender(url: str) -> HttpWebhooks:
    clock = SystemClock()
    signer = Signer([SECRET], None, clock.wall, clock.monotonic, what="webhook")
    config = EndpointConfig("archive", url, frozenset({"default"}), timeout=5.0)
    return HttpWebhooks([HttpEndpoint(config, signer, clock.wall)])


async def answer(status: int, **headers: str) -> DeliveryReply:
    """How a delivery ends that the endpoint answers so."""
    async with receiving() as receiver:

        async def reply(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            return web.Response(status=status, headers={name.replace("_", "-"): text for name, text in headers.items()})

        receiver.reply = reply
        made = sender(receiver.url)
        try:
            return await made.send("archive", "default", "wh_1", BODY)
        finally:
            await made.close()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, DeliveryOutcome.DELIVERED),
        (204, DeliveryOutcome.DELIVERED),
        (301, DeliveryOutcome.STATUS),
        (400, DeliveryOutcome.REFUSED),
        (401, DeliveryOutcome.STATUS),
        (408, DeliveryOutcome.STATUS),
        (404, DeliveryOutcome.STATUS),
        (410, DeliveryOutcome.STATUS),
        (413, DeliveryOutcome.REFUSED),
        (425, DeliveryOutcome.STATUS),
        (429, DeliveryOutcome.STATUS),
        (500, DeliveryOutcome.STATUS),
        (599, DeliveryOutcome.STATUS),
    ],
)
async def test_status_decides_how_a_delivery_ends(status: int, outcome: DeliveryOutcome) -> None:
    assert (await answer(status)).outcome is outcome


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("99999999999", MAX_RETRY_AFTER), ("0", 0.0), ("soon", None), ("-1", None), ("1.5", None)],
)
async def test_retry_after_is_read_within_bounds(header: str, seconds: float | None) -> None:
    assert (await answer(503, Retry_After=header)).retry_after == seconds


async def test_retry_after_may_be_a_date() -> None:
    found = (await answer(429, Retry_After=formatdate(time.time() + 30, usegmt=True))).retry_after
    assert found is not None
    assert 25 < found <= 30
    assert (await answer(429, Retry_After=formatdate(time.time() - 30, usegmt=True))).retry_after == 0.0


async def test_nothing_is_sent_without_an_address_or_after_the_end() -> None:
    async with receiving() as receiver:
        made = sender(receiver.url)
        assert (await made.send("archive", "other", "wh_1", BODY)).outcome is DeliveryOutcome.UNREACHABLE
        await made.close()
        assert (await made.send("archive", "default", "wh_1", BODY)).outcome is DeliveryOutcome.UNREACHABLE
        assert receiver.deliveries == []
