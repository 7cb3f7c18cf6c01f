"""Verifies the signatures of tokens, and caches which were valid."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from service.adapters.jwt.keys import Key
from service.telemetry.metrics import Metrics


class SignatureCache:
    """Remembers which key has signed each of the latest tokens.

    It stores a SHA-256 of the whole token and the thumbprint of the key. The caller names the key, so an entry is useless once
    the key is gone or replaced under the same id.
    """

    __slots__ = ("_cached", "_hits", "_max_tokens", "_misses")

    def __init__(self, max_tokens: int, metrics: Metrics) -> None:
        """Caches at most `max_tokens`, and evicts the least recently used. With 0 it caches none."""
        self._max_tokens = max_tokens
        self._cached: OrderedDict[bytes, bytes] = OrderedDict()
        self._misses = metrics.clients.token_signatures.labels(outcome="checked")
        self._hits = metrics.clients.token_signatures.labels(outcome="remembered")

    def verify(self, key: Key, signed: bytes, signature: bytes, token: bytes) -> bool:
        """Whether `signature` is the key's for `signed`. `token`: the whole token, which consists of both."""
        thumbprint = key.thumbprint
        if thumbprint is None:
            return key.verify(signed, signature)
        digest = hashlib.sha256(token).digest()
        if self._cached.get(digest) == thumbprint:
            self._cached.move_to_end(digest)
            self._hits.inc()
            return True
        self._misses.inc()
        if not key.verify(signed, signature):
            return False
        if not self._max_tokens:
            return True
        self._cached[digest] = thumbprint
        self._cached.move_to_end(digest)
        if len(self._cached) > self._max_tokens:
            self._cached.popitem(last=False)
        return True
