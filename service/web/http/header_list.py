"""Headers whose value is a list (RFC 9110 §5.6.1): over one line or several, with empty elements."""

from __future__ import annotations

from aiohttp import hdrs
from multidict import CIMultiDictProxy


def list_of(headers: CIMultiDictProxy[str], name: str) -> list[str]:
    """The elements of a header, in their order. For lists whose elements have no quoted strings."""
    lines = headers.getall(name, ())
    return [element for line in lines for part in line.split(",") if (element := part.strip(" \t"))]


def offers_websocket(headers: CIMultiDictProxy[str]) -> bool:
    """Whether WebSocket is among the protocols of Upgrade (RFC 9110 §7.8)."""
    if headers.get(hdrs.UPGRADE) == "websocket":  # as nearly everybody writes it
        return True
    return "websocket" in [protocol.lower() for protocol in list_of(headers, hdrs.UPGRADE)]
