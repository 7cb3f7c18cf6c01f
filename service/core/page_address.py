"""Signed addresses of history pages, which caches between client and service may keep (docs/history-pages.md). Pure.

An address is a path: `/history/{tenant}/{channel}/{epoch}/{first}-{last}/{expiry}.{key}.{signature}`. Everything that decides
is in the path, because some caches ignore the query. The signature covers all that is before it, as it is written.

Example:
    signer = PageSigner([key])
    path = signer.sign(PageAddress("acme", "room:42", epoch, 1, 100, expires_at))
    signer.verify(path)  # the same address
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from urllib.parse import quote, unquote

from msgspec import Struct

PAGE_EVENTS = 100
"""Offsets of one page. Pages begin at 1, 101, 201 …, so that all clients of a channel read the same ones."""
MAX_PATH = 1_024
"""Characters of an address, more than the longest names need."""

_DOTS = frozenset({".", ".."})
_PATH = re.compile(
    r"/history/(?P<tenant>[^/?#]+)/(?P<channel>[^/?#]+)/(?P<epoch>[^/?#]+)"
    r"/(?P<first>[0-9]{1,16})-(?P<last>[0-9]{1,16})/(?P<expires_at>[0-9]{1,12})"
    r"\.(?P<key>[0-9a-f]{8})\.(?P<signature>[A-Za-z0-9_-]{43})",
    re.ASCII,
)


class PageAddress(Struct, frozen=True):
    """A page of a channel's history, and until when its address is good."""

    tenant: str
    channel: str
    epoch: str
    first: int
    """The offset of the first event."""
    last: int
    """The offset of the last event."""
    expires_at: int
    """Seconds since the Unix epoch."""


class PageSigner:
    """Signs addresses and checks their signatures. All nodes have the same keys."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The first of the keys signs. An address that was signed with another of them stays good."""
        derived = [hmac.digest(key, b"tidewire history page", hashlib.sha256) for key in keys]
        self._by_id = {hmac.digest(key, b"id", hashlib.sha256)[:4].hex(): key for key in derived}
        self._signing_id = next(iter(self._by_id))

    def sign(self, address: PageAddress) -> str | None:
        """Returns the path; None for a name that clients and proxies would take for a relative path."""
        if address.channel in _DOTS or address.tenant in _DOTS:
            return None
        tenant, epoch = quote(address.tenant, safe=""), quote(address.epoch, safe="")
        channel = quote(address.channel, safe=":@=+~")
        signed = f"/history/{tenant}/{channel}/{epoch}/{address.first}-{address.last}/{address.expires_at}.{self._signing_id}"
        return f"{signed}.{_signature(self._by_id[self._signing_id], signed)}"

    def verify(self, path: str) -> PageAddress | None:
        """Returns the address in a path that `sign` has made with one of the keys; else None. The caller checks the expiry."""
        found = _PATH.fullmatch(path) if len(path) <= MAX_PATH else None
        key = None if found is None else self._by_id.get(found["key"])
        if found is None or key is None:
            return None
        signed, _, signature = path.rpartition(".")
        if not hmac.compare_digest(signature, _signature(key, signed)):
            return None
        return PageAddress(
            unquote(found["tenant"]),
            unquote(found["channel"]),
            unquote(found["epoch"]),
            int(found["first"]),
            int(found["last"]),
            int(found["expires_at"]),
        )


def page_of(offset: int) -> tuple[int, int]:
    """Returns the first and the last offset of the page with this offset."""
    first = (offset - 1) // PAGE_EVENTS * PAGE_EVENTS + 1
    return first, first + PAGE_EVENTS - 1


def expiry_of(tenant: str, channel: str, now: float, ttl: int) -> int:
    """Returns when an address that is made now expires: after more than half of `ttl` seconds, and at most all of it.

    It is the same for all who ask within half of `ttl`, so that a cache can serve them all. Channels change at different
    times, so that caches do not ask for all channels at once.
    """
    window = ttl // 2
    phase = zlib.crc32(f"{tenant} {channel}".encode()) % window
    return (int(now) - phase) // window * window + 2 * window + phase


def _signature(key: bytes, text: str) -> str:
    return urlsafe_b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode().rstrip("=")
