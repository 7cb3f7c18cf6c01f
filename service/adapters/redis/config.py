"""The settings of the Redis adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.adapters.redis.address import RedisAddress
from service.adapters.store.config import StoreConfig

Login = tuple[str, str] | None
"""User and password; None to send no AUTH."""


@dataclass(frozen=True, slots=True)
class RedisConfig(StoreConfig):
    """Where the servers are, and how to log in to the Sentinels."""

    address: RedisAddress
    sentinel_user: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def is_tls(self) -> bool:
        """Whether the URL begins with `rediss`."""
        return self.address.tls

    @property
    def login(self) -> Login:
        """The login to the servers."""
        return _login(self.user, self.password)

    @property
    def sentinel_login(self) -> Login:
        """The login to the Sentinels."""
        return _login(self.sentinel_user, self.sentinel_password)

    def redis_py_tls(self) -> dict[str, Any]:
        """Returns the arguments with which redis-py makes the same TLS context as `ssl_context`."""
        if not self.is_tls:
            return {}
        files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.certificate, "ssl_keyfile": self.private_key}
        return {"ssl": True, "ssl_check_hostname": True, **{name: str(file) for name, file in files.items() if file}}


def _login(user: str | None, password: str | None) -> Login:
    """A user without a password (`nopass`) logs in, too; a password alone is the default user's."""
    return (user or "default", password or "") if user or password else None


def milliseconds(seconds: float) -> int:
    """Converts a duration for Redis: to whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))
