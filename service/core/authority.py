"""Compares hosts, ports and origins as in RFC 3986 §6.2: hosts without case, and a default port equals no port.

    same_authority("https", "EXAMPLE.com:443", "example.com")  # True
    canonical_origin("HTTP://Example.com:80")                  # "http://example.com"

A trailing dot counts: browsers treat `example.com.` and `example.com` as different hosts (RFC 6454 §5).
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
MAX_PORT = 65_535

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::(?P<port>[0-9]*))?")
_ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#@\\]+)")


class Authority(NamedTuple):
    """A normalised host, and a port."""

    host: str
    """Lower case; an IPv6 address in brackets, in the form of RFC 5952."""
    port: int | None


@lru_cache(maxsize=256)
def parse_authority(text: str, scheme: str | None = None) -> Authority | None:
    """Parses `host` or `host:port`; None if the text is neither. Without a port, the scheme's default port applies."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    host = _host(found["host"])
    digits = (found["port"] or "").lstrip("0")
    if host is None or len(digits) > len(str(MAX_PORT)):
        return None
    port = int(digits or 0) if found["port"] else DEFAULT_PORTS.get(scheme or "")
    return None if port is not None and port > MAX_PORT else Authority(host, port)


def _host(text: str) -> str | None:
    if text.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        except ValueError:
            return None
    if "%" in text:  # RFC 3986 §6.2.2.2
        text = unquote(text, errors="replace")
    return text.lower() if text.isascii() else None


def same_authority(scheme: str, one: str, other: str) -> bool:
    """True if two authorities name the same host and port in this scheme."""
    found = parse_authority(one, scheme.lower())
    return found is not None and found == parse_authority(other, scheme.lower())


def split_origin(origin: str) -> tuple[str, str] | None:
    """Splits an origin into scheme and authority (RFC 6454 §6.2); None for `null` and for any text that is not an origin."""
    found = _ORIGIN.fullmatch(origin)
    return None if found is None else (found["scheme"].lower(), found["authority"])


@lru_cache(maxsize=256)
def canonical_origin(origin: str) -> str | None:
    """Normalises an origin: lower case, no default port. None for `null` and for any text that is not an origin."""
    parts = split_origin(origin)
    authority = parse_authority(parts[1], parts[0]) if parts is not None else None
    if parts is None or authority is None:
        return None
    scheme = parts[0]
    is_default = authority.port is None or authority.port == DEFAULT_PORTS.get(scheme)
    return f"{scheme}://{authority.host}" if is_default else f"{scheme}://{authority.host}:{authority.port}"
