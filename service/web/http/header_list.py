"""Headers whose value is a list (RFC 9110 §5.6.1): on one line or several, with empty elements."""

from __future__ import annotations

from aiohttp import hdrs
from multidict import CIMultiDictProxy


def header_elements(headers: CIMultiDictProxy[str], name: str) -> list[str]:
    """The elements of a list header in order, without empty ones. Does not parse quoted strings."""
    lines = headers.getall(name, ())
    return [element for line in lines for part in line.split(",") if (element := part.strip(" \t"))]


def offers_websocket(headers: CIMultiDictProxy[str]) -> bool:
    """Whether the Upgrade header lists WebSocket (RFC 9110 §7.8)."""
    if headers.get(hdrs.UPGRADE) == "websocket":  # the usual spelling, checked first because it is cheap
        return True
    return "websocket" in [protocol.lower() for protocol in header_elements(headers, hdrs.UPGRADE)]
