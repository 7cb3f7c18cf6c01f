"""The keys of one issuer, and the parser of JWKS documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Literal, Protocol

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from jwt.algorithms import HMACAlgorithm

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]

MAX_DOCUMENT = 262_144
"""Bytes of a JWKS."""


class Key(Protocol):
    """Verifies the signatures of one algorithm."""

    thumbprint: bytes | None
    """Identifies the key, whatever its source. None if verifying is so cheap that results need no cache."""

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """Whether the signature is valid for these bytes."""


class PublicKey:
    """A public key of a JWKS, parsed once: parsing costs more than verifying a signature."""

    __slots__ = ("_algorithm", "key", "thumbprint")

    def __init__(self, members: Mapping[str, str], algorithm: Algorithm) -> None:
        """Raises ValueError or jwt.PyJWTError for members that are no key, or a weak one."""
        parsed = jwt.PyJWK(dict(members), algorithm)
        if fault := parsed.Algorithm.check_key_length(parsed.key):
            raise ValueError(fault)
        self._algorithm = parsed.Algorithm
        self.key = parsed.key
        self.thumbprint: bytes | None = hashlib.sha256(
            json.dumps(members, sort_keys=True, separators=(",", ":")).encode()  # as in RFC 7638
        ).digest()

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """Verifies by the algorithm."""
        return bool(self._algorithm.verify(signed, self.key, signature))


class SharedKey:
    """The secret that an HS256 issuer shares with the service."""

    __slots__ = ("_keyed", "thumbprint")

    def __init__(self, secret: str) -> None:
        """Raises jwt.InvalidKeyError for a public key or a certificate, which are no secrets."""
        # Keyed once and copied: keying costs more than hashing a token. The copies of Python's `hmac` cost four times as much.
        self._keyed = HMAC(HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret), SHA256())
        self.thumbprint: bytes | None = None

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """Compares the signature with the one that the secret makes."""
        expected = self._keyed.copy()
        expected.update(signed)
        return compare_digest(expected.finalize(), signature)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a JWKS."""

    named: Mapping[str, PublicKey]
    nameless: tuple[PublicKey, ...]

    def __len__(self) -> int:
        return len(self.named) + len(self.nameless)

    def find(self, kid: str | None) -> PublicKey | None:
        """Returns the key with this id. Without an id, returns the only key; None if there are several, because a guess
        would hide a fault."""
        if kid is not None:
            return self.named.get(kid)
        keys = (*self.named.values(), *self.nameless)
        return keys[0] if len(keys) == 1 else None


# The public members of each key type. Of a private key, which is in a JWKS by accident, only the public half is read.
_PUBLIC_MEMBERS: Mapping[str, Mapping[str, str | None]] = {
    "RS256": {"kty": "RSA", "n": None, "e": None},
    "ES256": {"kty": "EC", "crv": "P-256", "x": None, "y": None},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519", "x": None},
}
_ALG_SPELLINGS: Mapping[str, frozenset[str]] = {"EdDSA": frozenset({"EdDSA", "Ed25519"})}
"""Other spellings of `alg` in a key (RFC 9864)."""


def parse_keys(document: bytes, algorithm: Algorithm) -> KeySet:
    """Parses a JWKS. Skips keys of another type, use or algorithm, and broken or weak ones.

    Raises ValueError for a document that is no JWKS.
    """
    if len(document) > MAX_DOCUMENT:
        raise ValueError(f"the JWKS is larger than {MAX_DOCUMENT} bytes")
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ValueError("the JWKS is not JSON") from error
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError('the JWKS is not an object with a list "keys"')  # noqa: TRY004  # one kind of failure
    named: dict[str, PublicKey] = {}
    nameless: list[PublicKey] = []
    for entry in entries:
        key = _parse_key(entry, algorithm)
        if key is None:
            continue
        kid = entry.get("kid")
        if isinstance(kid, str):
            named.setdefault(kid, key)
        else:
            nameless.append(key)
    return KeySet(named, tuple(nameless))


def _parse_key(entry: Any, algorithm: Algorithm) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("alg", algorithm) not in _ALG_SPELLINGS.get(algorithm, frozenset({algorithm})):
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    wanted = _PUBLIC_MEMBERS[algorithm]
    if any(not isinstance(entry.get(name), str) or value not in (None, entry[name]) for name, value in wanted.items()):
        return None
    try:
        return PublicKey({name: entry[name] for name in wanted}, algorithm)
    except (jwt.PyJWTError, ValueError):
        return None
