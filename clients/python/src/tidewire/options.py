"""What both clients are configured with."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tidewire.errors import ConfigurationError
from tidewire.http.address import Address
from tidewire.http.flow import RetryPolicy
from tidewire.http.transport import HttpOptions
from tidewire.realtime.connection import RealtimeOptions
from tidewire.realtime.link import Dial, WebSocketDial

Token: TypeAlias = "str | Callable[[], str] | Callable[[], Awaitable[str]]"  # noqa: S105  # a type, no secret
"""A token, or a function that gets a new one. The function is called for each connection, and before the token expires."""
SyncToken: TypeAlias = "str | Callable[[], str]"

MAX_CONNECTIONS = 20
"""Connections to the service for HTTP requests."""
MAX_WAITING = 1000
"""Calls that run or wait for a connection."""
DEADLINE = 10.0
"""Seconds for one call, with its retries."""


def http_options(
    url: str,
    api_key: str | None,
    max_connections: int,
    max_waiting: int,
    verify: bool | ssl.SSLContext,
    proxy: str | None,
    trust_env: bool,
) -> HttpOptions:
    """Checks and joins the options of HTTP. Raises ConfigurationError."""
    address = Address(url)
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
        raise ConfigurationError("the API key is empty, or has other characters than printable ASCII")
    if max_connections < 1 or max_waiting < 1:
        raise ConfigurationError("max_connections and max_waiting are at least 1")
    if proxy is None and trust_env:
        proxy = address.proxy()
    return HttpOptions(address, api_key, max_connections, max_waiting, verify, proxy)


def required_token(token: Token, *, in_thread: bool = False) -> Callable[[], Awaitable[str]]:
    """Returns an async function that gets the token. `in_thread`: a function of a client for threads may block."""

    async def get() -> str:
        if isinstance(token, str):
            return token
        found: str | Awaitable[str] = await asyncio.to_thread(token) if in_thread else token()
        return found if isinstance(found, str) else await found

    return get


def realtime_options(
    http: HttpOptions,
    token: Token | None,
    dial: Dial | None,
    policy: RetryPolicy,
    random: Callable[[], float],
    *,
    in_thread: bool = False,
) -> RealtimeOptions:
    """Returns how a client with these options connects."""

    async def anonymous() -> None:
        return None

    return RealtimeOptions(
        url=http.address.websocket,
        get_token=anonymous if token is None else required_token(token, in_thread=in_thread),
        renews=callable(token),
        dial=dial or WebSocketDial(http.verify, http.proxy),
        max_waiting=http.max_waiting,
        policy=policy,
        random=random,
    )


def retry_policy(retries: int | RetryPolicy) -> RetryPolicy:
    """Returns the policy for a number of retries."""
    if isinstance(retries, RetryPolicy):
        return retries
    if retries < 0:
        raise ConfigurationError("retries is at least 0")
    return RetryPolicy(max_attempts=retries + 1)


def check_deadline(seconds: float) -> float:
    """Returns the seconds of a call. Raises ConfigurationError."""
    if not 0 < seconds <= 86_400:
        raise ConfigurationError("a deadline is more than 0 and at most 86 400 seconds")
    return seconds
