"""Headers whose value is a list (RFC 9110 §5.6.1): on one line or several, with empty elements."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from aiohttp import hdrs
from multidict import CIMultiDictProxy

T = TypeVar("T")


class PlainHeaders(dict[str, str]):
    """Fields that come once each, by the names that aiohttp's `hdrs` gives them. Has only the fields that this service reads."""

    __slots__ = ()

    def getall(self, name: str, default: T) -> list[str] | T:
        """Returns the value in a list, as CIMultiDictProxy does."""
        value = self.get(name)
        return default if value is None else [value]


Headers: TypeAlias = CIMultiDictProxy[str] | PlainHeaders


def header_elements(headers: Headers, name: str) -> list[str]:
    """The elements of a list header in order, without empty ones. Does not parse quoted strings."""
    lines = headers.getall(name, ())
    return [element for line in lines for part in line.split(",") if (element := part.strip(" \t"))]


def offers_websocket(headers: Headers) -> bool:
    """Whether the Upgrade header lists WebSocket (RFC 9110 §7.8)."""
    if headers.get(hdrs.UPGRADE) == "websocket":  # the usual spelling, checked first because it is cheap
        return True
    return "websocket" in [protocol.lower() for protocol in header_elements(headers, hdrs.UPGRADE)]
