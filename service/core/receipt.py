"""Receipts: what a client shows to any node to continue its session over HTTP. Pure.

Every time is in seconds since the Unix epoch.

Example:
    signer = ReceiptSigner(key)
    signer.verify(signer.sign(receipt))  # the same receipt
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping

import msgspec
from msgspec import Struct

_VERSION = "v1"


class ReceiptChannel(Struct, frozen=True, array_like=True, omit_defaults=True):
    """A subscription of a session, and how far a poll has brought it."""

    subscribed_at: float
    epoch: str = ""
    """Empty for a subscription of a stream, which goes on without polls."""
    offset: int = 0
    id: str | None = None
    state_version: int = 0
    rights: tuple[str, ...] = ()
    """What the backend has granted with the subscription: names of `Right`."""
    granted_at: float = 0.0


class Receipt(Struct, frozen=True):
    """A session of a user: its subscriptions, and until when that is to be believed."""

    tenant: str
    user: str
    """Empty for an anonymous client."""
    session: str
    """The id of the session: that of the connection of a stream, or of each connection of a polling client."""
    started_at: float
    issued_at: float
    expires_at: float
    channels: Mapping[str, ReceiptChannel]
    is_polled: bool = False
    """True for the receipt of a poll, which the next poll continues. The session of a stream is its connection's alone."""
    announced_expiry: float | None = None
    """The expiry of the token for which the polling client has got `expiring`."""


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Receipt)


class ReceiptSigner:
    """Signs receipts and checks their signatures. All nodes have the same key."""

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, b"tidewire receipt", hashlib.sha256)

    def sign(self, receipt: Receipt) -> str:
        """Returns the receipt as text, safe in an address."""
        body = f"{_VERSION}.{urlsafe_b64encode(_encode(receipt)).decode()}"
        return f"{body}.{self._signature(body)}"

    def verify(self, text: str) -> Receipt | None:
        """Returns the receipt in a text that `sign` has made with this key; else None.

        The caller bounds the text: a receipt has about 400 characters for a channel with the longest name.
        """
        body, _, signature = text.rpartition(".")
        if not text.isascii():
            return None
        if not hmac.compare_digest(signature, self._signature(body)):
            return None
        version, _, encoded = body.partition(".")
        return _decoder.decode(urlsafe_b64decode(encoded)) if version == _VERSION else None

    def _signature(self, body: str) -> str:
        return urlsafe_b64encode(hmac.digest(self._key, body.encode(), hashlib.sha256)).decode()
