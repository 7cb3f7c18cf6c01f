"""Requests whose head has the usual form, parsed at a fraction of the cost of aiohttp's parser and request object.

Nearly every upgrade is such a request: a GET of HTTP/1.1, in ASCII, whose header fields come once each. aiohttp parses all
others. It would read each of these in the same way (tests/unit/test_web_plain_request.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy

from service.core.authority import parse_authority
from service.web.http.header_list import Headers

MAX_PLAIN_BYTES = 8_000
"""Bytes of a head that is parsed here. The service's limits on a target and on a field are larger, so none can be exceeded."""
MAX_PLAIN_FIELDS = 64

_HEAD = re.compile(
    # Of a target's characters, `%`, `+` and `#` would need decoding.
    r"GET (/[A-Za-z0-9._~!$&'()*,;:@/?=-]*) HTTP/1\.1\r\n"
    rf"((?:[A-Za-z0-9-]+: (?:[!-~](?:[ -~]*[!-~])?)?\r\n){{1,{MAX_PLAIN_FIELDS}}}+)\r\n"
)
_UNUSUAL = frozenset({"content-length", "cookie", "expect", "sec-websocket-key1", "transfer-encoding"})
"""Fields, in lower case, that aiohttp or this service would have to check or decode."""
_UPGRADES = frozenset({"upgrade", "keep-alive, upgrade"})
"""Usual values of Connection, in lower case: Firefox sends the second one."""
_NO_PARAMETERS: MultiDictProxy[str] = MultiDictProxy(MultiDict())
_NO_COOKIES: Mapping[str, str] = {}


class PlainRequest:
    """A request as aiohttp's `BaseRequest` describes it, with only the attributes that the checks of an upgrade read."""

    __slots__ = ("accept", "headers", "raw_path", "remote")

    method = hdrs.METH_GET
    version = HttpVersion11
    query = _NO_PARAMETERS
    """Not used: the target needs no decoding."""
    cookies = _NO_COOKIES

    def __init__(self, raw_path: str, headers: Headers, remote: str | None, accept: bytes | None = None) -> None:
        self.raw_path = raw_path
        self.headers = headers
        self.remote = remote
        self.accept = accept
        """Sec-WebSocket-Accept of the key, if the parser has found the handshake valid (RFC 6455 §4.2.1); else empty or None."""


AnyRequest: TypeAlias = web.BaseRequest | PlainRequest
ParsePlainUpgrade: TypeAlias = Callable[[bytes, str | None], PlainRequest | None]
"""What `parse_plain_upgrade` is; NativeParser (web/ws/native.py) does the same in C."""


def parse_plain_upgrade(head: bytes, remote: str | None) -> PlainRequest | None:
    """The request of a head, if that has the usual form and is a valid WebSocket upgrade without a body; else None.

    `remote` is the address of the peer.
    """
    if len(head) > MAX_PLAIN_BYTES or not head.isascii():
        return None
    found = _HEAD.fullmatch(head.decode())
    if found is None:
        return None
    target, lines = found.groups()
    fields: list[tuple[str, str]] = []
    names: set[str] = set()
    for line in lines.split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        fields.append((name, value))
        names.add(name.lower())
    if len(names) != len(fields) or not names.isdisjoint(_UNUSUAL):
        return None
    headers = CIMultiDictProxy(CIMultiDict(fields))
    if headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        return None
    if headers.get(hdrs.CONNECTION, "").lower() not in _UPGRADES:
        return None
    host = headers.get(hdrs.HOST, "")
    if not host or parse_authority(host) is None:
        return None
    return PlainRequest(target, headers, remote)
