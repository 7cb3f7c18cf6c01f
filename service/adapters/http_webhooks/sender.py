"""Sends deliveries to endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp

from service.adapters.http_backend.client import BackendClient, ClosedError, LargeReplyError, describe, read_body
from service.adapters.http_backend.signing import Signer
from service.core.webhooks import DeliveryOutcome, DeliveryReply, refuses_entries

MAX_REPLY = 16_384
"""Bytes of a reply's body that are read, so that the connection can be used again. The body does not count."""
BODY_TIMEOUT = 0.5
"""Seconds that such a body may take. A slower one costs the connection, not the delivery."""
MAX_RETRY_AFTER = 600.0
"""Seconds that an endpoint can ask to wait."""
MAX_CONNECTIONS = 64
"""Connections to one address; each queue uses one at a time."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where and how to send."""

    name: str
    url: str
    tenants: frozenset[str]
    """Tenants whose entries go there."""
    timeout: float
    """Seconds until a request has failed."""
    ca: Path | None = None
    """PEM file of the certificate authorities; None: those of the system."""


class HttpEndpoint:
    """Sends to one address."""

    def __init__(self, config: EndpointConfig, signer: Signer, wall: Callable[[], float]) -> None:
        """`wall`: seconds since the Unix epoch."""
        self.config = config
        self._signer = signer
        self._wall = wall
        self._client = BackendClient(config.url, config.ca, connections=MAX_CONNECTIONS)

    async def send(self, id: str, body: bytes) -> DeliveryReply:
        """Sends one delivery. Never raises."""
        try:
            async with asyncio.timeout(self.config.timeout):
                return await self._send(id, body)
        except TimeoutError:
            return DeliveryReply(DeliveryOutcome.TIMEOUT, f"no answer within {self.config.timeout:g} s")
        except (ClosedError, aiohttp.ClientError, OSError, ValueError) as error:
            return DeliveryReply(DeliveryOutcome.UNREACHABLE, describe(error))

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _send(self, id: str, body: bytes) -> DeliveryReply:
        async with self._client.post(self._signer.headers(id, body), body) as response:
            status = response.status
            await _pass_over_body(response)
        if 200 <= status < 300:
            return DeliveryReply(DeliveryOutcome.DELIVERED)
        reason = f"answered {status}"
        if refuses_entries(status):
            return DeliveryReply(DeliveryOutcome.REFUSED, reason)
        return DeliveryReply(DeliveryOutcome.STATUS, reason, self._retry_after(response.headers.get("Retry-After")))

    def _retry_after(self, value: str | None) -> float | None:
        """Reads `Retry-After`: seconds, or a date. None for everything else."""
        if value is None:
            return None
        if value.isascii() and value.isdigit():
            return min(float(value[:9]), MAX_RETRY_AFTER)
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return min(max(0.0, (at - datetime.fromtimestamp(self._wall(), UTC)).total_seconds()), MAX_RETRY_AFTER)


async def _pass_over_body(response: aiohttp.ClientResponse) -> None:
    """Reads a small body. A large, slow or broken one changes nothing: the status has said everything."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            await read_body(response, MAX_REPLY)
    except (TimeoutError, LargeReplyError, aiohttp.ClientError, OSError):
        pass


class HttpWebhooks:
    """Implements WebhookSender."""

    def __init__(self, endpoints: Iterable[HttpEndpoint]) -> None:
        """No two endpoints of one name have a tenant in common."""
        self._endpoints = {(one.config.name, tenant): one for one in endpoints for tenant in one.config.tenants}

    async def send(self, endpoint: str, tenant: str, id: str, body: bytes) -> DeliveryReply:
        """Sends one delivery, signed now, within the endpoint's timeout. Never raises."""
        found = self._endpoints.get((endpoint, tenant))
        if found is None:
            return DeliveryReply(DeliveryOutcome.UNREACHABLE, "the settings give no address")
        return await found.send(id, body)

    async def close(self) -> None:
        """Ends all connections to endpoints."""
        for endpoint in set(self._endpoints.values()):
            await endpoint.close()
