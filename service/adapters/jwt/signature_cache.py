"""Checks tokens' signatures, and remembers of the latest ones that they were right (docs/adr/0018-tokens.md)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from service.adapters.jwt.key_sources import Key
from service.telemetry.metrics import Metrics


class Signatures:
    """Answers whether a token was signed with a key, and nothing else: what the token says is judged anew every time.

    What is kept is a SHA-256 of the whole token and the thumbprint of the key that has signed it. A key that is gone, or
    another one under its id, makes the entry worthless, as whoever asks names the key.
    """

    __slots__ = ("_checked", "_known", "_most", "_remembered")

    def __init__(self, most: int, metrics: Metrics) -> None:
        """Remembers `most` tokens, the one seen longest ago is forgotten first; none with 0."""
        self._most = most
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._checked = metrics.clients.token_signatures.labels(outcome="checked")
        self._remembered = metrics.clients.token_signatures.labels(outcome="remembered")

    def is_right(self, key: Key, signed: bytes, signature: bytes, token: bytes) -> bool:
        """Whether `signature` is the key's for `signed`; `token` is both, as they came."""
        thumbprint = key.thumbprint
        if thumbprint is None:
            return key.verify(signed, signature)
        digest = hashlib.sha256(token).digest()
        if self._known.get(digest) == thumbprint:
            self._known.move_to_end(digest)
            self._remembered.inc()
            return True
        self._checked.inc()
        if not key.verify(signed, signature):
            return False
        if not self._most:
            return True
        self._known[digest] = thumbprint
        self._known.move_to_end(digest)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return True
