"""What the HTTP edge is told at the start, and where its handlers find it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from service.realtime.node import Node


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A backend's key. It speaks for one tenant."""

    name: str
    key: str = field(repr=False)
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The settings that concern the HTTP edge alone; the bounds are the node's."""

    origins: tuple[str, ...] = ()
    """Exact origins that browsers may come from; empty: only the service's own; ``*``: any (never with a cookie)."""
    cookie: str | None = None
    """The cookie that may carry a token."""
    hops: int = 0
    """Trusted proxies in front, each of which appends to X-Forwarded-For."""
    api_keys: tuple[ApiKey, ...] = ()


NODE = web.AppKey("node", Node)
HTTP_CONFIG = web.AppKey("edge", HttpConfig)
