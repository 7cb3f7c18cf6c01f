"""Settings that all stores across the network share."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
    prefix: str = "tidewire"
    call_timeout: float = 5.0
    """For a call of the store."""
    max_calls: int = 10_000
    """Calls that may wait for the store at the same time."""
    ping_interval: float = 1.0
    silence_timeout: float = 3.0
    """After which a connection counts as lost when the server sends nothing."""
    position_ttl: float = 604_800.0
    empty_ttl: float = 60.0
    """For which the position of an empty channel is kept."""
    idempotency_window: float = 300.0
    start_timeout: float = 30.0
    """For which a starting node waits for servers that cannot be reached."""

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
