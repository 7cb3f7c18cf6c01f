"""What the adapters of every store across the network are told."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ServerTime = Callable[[str, float, float], None]
"""Gets a server's name, what its clock shows (seconds since the Unix epoch), and the seconds that its answer took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """See the settings of the same names (docs/settings.md)."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    prefix: str = "tidewire"
    timeout: float = 5.0
    queue: int = 10_000
    ping: float = 1.0
    silence: float = 3.0
    position_ttl: float = 604_800.0
    empty_ttl: float = 60.0
    idempotency_window: float = 300.0
    start: float = 30.0
    """Seconds that a start waits for servers that cannot be reached."""

    @property
    def is_tls(self) -> bool:
        """Whether connections are to be encrypted."""
        raise NotImplementedError

    def ssl_context(self) -> ssl.SSLContext | None:
        """For own connections; None for plain TCP. Raises OSError (ssl.SSLError is one) for files that are no use."""
        if not self.is_tls:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.private_key)
        return context
