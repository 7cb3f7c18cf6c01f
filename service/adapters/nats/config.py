"""The settings of the NATS adapters."""

from __future__ import annotations

from dataclasses import dataclass

from service.adapters.store.config import StoreConfig


@dataclass(frozen=True, slots=True)
class NatsConfig(StoreConfig):
    """Where the servers are."""

    servers: tuple[str, ...]
    """Each nats://host:port, or tls://host:port."""

    @property
    def is_tls(self) -> bool:
        """Whether the URLs begin with `tls`."""
        return self.servers[0].startswith("tls://")
