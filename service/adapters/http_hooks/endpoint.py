"""One endpoint of the backend: its bounds, its connections, its signatures, its circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.adapters.http_backend.client import BackendClient, ClosedError, LargeReplyError, describe, read_body
from service.adapters.http_backend.signing import Signer
from service.adapters.http_hooks.breaker import CircuitBreaker
from service.core.hooks import HookError, Outcome

MAX_WAITING = 1_000
"""Questions that may wait for a connection to one endpoint. Further ones fail at once."""
MAX_OVERHEAD = 4_096
"""Bytes of a reply beside the data of an event, at most."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where and how to ask."""

    name: str
    url: str
    tenants: frozenset[str]
    """Tenants whose questions go there."""
    timeout: float
    """Seconds until a question has no answer."""
    concurrency: int
    """Questions on their way at once."""
    tenant_concurrency: int
    """The same for one tenant."""
    ca: Path | None = None
    """PEM file of the certificate authorities; None: those of the system."""


class Endpoint:
    """Sends questions to one address. A slow backend slows only those who ask it."""

    def __init__(self, config: EndpointConfig, signer: Signer, max_data: int, monotonic: Callable[[], float]) -> None:
        """`max_data`: bytes of an event's data, which a reply may have."""
        self.config = config
        self._signer = signer
        self._max_reply = max_data + MAX_OVERHEAD
        self.breaker = CircuitBreaker(monotonic)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._tenant_slots = {tenant: asyncio.Semaphore(config.tenant_concurrency) for tenant in config.tenants}
        self._client = BackendClient(config.url, config.ca, connections=config.concurrency)
        self.waiting = 0
        """Questions without an answer, those on their way included."""

    async def post(
        self,
        tenant: str,
        id: str,
        body: bytes,
        decode: Callable[[bytes], T],
        timeout: float | None = None,  # noqa: ASYNC109  # raises HookError instead of TimeoutError
    ) -> T:
        """Sends a question, and returns the decoded body of a 200 reply. Raises HookError.

        `decode` raises HookError for what is no answer at all. That counts as a failure of the endpoint, as no reply does.
        `timeout`: seconds; None for those of the endpoint.
        """
        timeout = self.config.timeout if timeout is None else timeout
        if self.waiting >= MAX_WAITING:
            raise HookError(Outcome.BUSY, f"{self.waiting} questions wait already")
        if not self.breaker.may_pass():
            raise HookError(Outcome.OPEN, "it has failed again and again, and is not asked for a while")
        self.waiting += 1
        is_asked = False
        latest_start = asyncio.get_running_loop().time() + timeout / 2
        try:
            # First the tenant's own bound: what waits there keeps nobody else from the endpoint.
            async with asyncio.timeout(timeout), self._tenant_slots[tenant], self._slots:
                # With less time for the answer, a crowd of one tenant would look like a backend that fails.
                if is_asked := asyncio.get_running_loop().time() < latest_start:
                    reply = decode(await self._post(id, body))
                else:
                    raise TimeoutError
        except Exception as error:
            failure = _failure(error, timeout, is_asked=is_asked)
            if failure.outcome is not Outcome.BUSY:
                self.breaker.failed()
            raise failure from error
        finally:
            self.waiting -= 1
        self.breaker.succeeded()
        return reply

    async def close(self) -> None:
        """Ends the connections; later questions have no answer."""
        await self._client.close()

    async def _post(self, id: str, body: bytes) -> bytes:
        async with self._client.post(self._signer.headers(id, body), body) as response:
            if response.status != 200:
                raise HookError(Outcome.STATUS, f"answered {response.status}, not 200")
            coding = response.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                raise HookError(
                    Outcome.BAD_REPLY, f"the reply has the content coding {coding[:32]!r}, which was not asked for"
                )
            try:
                return await read_body(response, self._max_reply)
            except LargeReplyError as error:
                raise HookError(Outcome.BAD_REPLY, str(error)) from error


def _failure(error: Exception, timeout: float, *, is_asked: bool) -> HookError:
    if isinstance(error, HookError):
        return error
    if isinstance(error, ClosedError):
        return HookError(Outcome.UNREACHABLE, str(error))
    if not isinstance(error, TimeoutError):
        return HookError(Outcome.UNREACHABLE, describe(error))
    if is_asked:
        return HookError(Outcome.TIMEOUT, f"no answer within {timeout:g} s")
    return HookError(Outcome.BUSY, f"not sent within {timeout:g} s, as others wait for their answers")
