"""Settings that all stores across the network share."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from service.core.limits import (
    EMPTY_TTL,
    IDEMPOTENCY_WINDOW,
    MAX_STORE_CALLS,
    POSITION_TTL,
    STORE_CALL_TIMEOUT,
    STORE_PING_INTERVAL,
    STORE_PREFIX,
    STORE_SILENCE_TIMEOUT,
    UNREADY_AFTER,
)

ServerTimeObserver = Callable[[str, float, float], None]
"""Called with a server's name, the time of its clock (seconds since the Unix epoch), and the seconds that its answer took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """The settings `broker.…` (docs/settings.md), all in seconds unless they say otherwise."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    prefix: str = STORE_PREFIX
    call_timeout: float = STORE_CALL_TIMEOUT
    """Timeout of one call of the store."""
    max_calls: int = MAX_STORE_CALLS
    """Calls that may wait for the store at the same time."""
    ping_interval: float = STORE_PING_INTERVAL
    silence_timeout: float = STORE_SILENCE_TIMEOUT
    """A connection counts as lost when the server has sent nothing for so long."""
    position_ttl: float = POSITION_TTL
    empty_ttl: float = EMPTY_TTL
    """How long the position of an empty channel is kept."""
    idempotency_window: float = IDEMPOTENCY_WINDOW
    start_timeout: float = UNREADY_AFTER
    """How long a starting node waits for servers that cannot be reached."""

    @property
    def is_tls(self) -> bool:
        """Whether connections are encrypted."""
        raise NotImplementedError

    def ssl_context(self) -> ssl.SSLContext | None:
        """Returns the TLS context for our own connections; None for plain TCP. Raises OSError for unusable files."""
        if not self.is_tls:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.private_key)
        return context
