"""The HTTP settings, and the keys under which aiohttp's handlers find them and the node."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from service.realtime.node import Node


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A backend's API key, valid for one tenant."""

    name: str
    key: str = field(repr=False)
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Settings that only HTTP needs; limits and deadlines are in the node's Bounds."""

    origins: tuple[str, ...] = ()
    """Allowed origins, compared exactly. Empty: only the service's own origin. ``*``: any origin, without cookies."""
    cookie: str | None = None
    """The name of the cookie that may carry a token; None: no cookie is read."""
    hops: int = 0
    """Trusted proxies in front, each of which appends to X-Forwarded-For."""
    api_keys: tuple[ApiKey, ...] = ()
    hook_headers: tuple[str, ...] | None = None
    """Names of the headers that the hook `connect` gets; None if no hook authenticates clients."""


NODE = web.AppKey("node", Node)
HTTP_CONFIG = web.AppKey("http_config", HttpConfig)
