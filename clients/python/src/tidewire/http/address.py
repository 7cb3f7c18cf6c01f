"""The address of a service, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
import urllib.request
from urllib.parse import urlsplit

from tidewire.errors import ConfigurationError

_SCHEMES = {"http": ("http", "ws"), "https": ("https", "wss"), "ws": ("http", "ws"), "wss": ("https", "wss")}


class Address:
    """The base of all URLs of one service."""

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"the URL is wrong: {error}") from error
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ConfigurationError("the URL is like https://events.example.com")
        if parts.username or parts.password:
            raise ConfigurationError("the URL has no user and no password; pass api_key or token")
        if parts.query or parts.fragment:
            raise ConfigurationError("the URL ends with its path: no query and no fragment")
        http, ws = _SCHEMES[parts.scheme]
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        place = host if port is None else f"{host}:{port}"
        path = parts.path.rstrip("/").removesuffix("/ws")
        self.host = parts.hostname
        self.http = f"{http}://{place}{path}"
        self.websocket = f"{ws}://{place}{path}/ws"

    def __repr__(self) -> str:
        return f"Address({self.http!r})"

    def proxy(self) -> str | None:
        """Returns the proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY …); none on this machine."""
        if _is_loopback(self.host) or urllib.request.proxy_bypass(self.host):
            return None
        proxies = urllib.request.getproxies()
        return proxies.get(urlsplit(self.http).scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
