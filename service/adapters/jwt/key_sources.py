"""Where an issuer's keys come from: a shared secret, a JWKS file or a JWKS address."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import jwt
import structlog
from jwt.algorithms import HMACAlgorithm

from service.core.clock import Clock
from service.errors import ErrorCode, ServiceError
from service.telemetry.outage import OutageLog

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
Fetch = Callable[[str], Awaitable[bytes]]
"""Gets a document; bounds its time and size itself; any exception means that it could not be had."""

MAX_DOCUMENT = 262_144
FILE_LOOK = 1.0
"""Seconds between two looks at a file's modification time."""
FRESH = 300.0
"""Seconds that fetched keys are used without asking again."""
REFETCH = 30.0
"""Seconds between two fetches, at least, once there are keys: whoever sends unknown kids can't cause more."""
RETRY = 5.0
"""The same as long as there are none."""

_log = structlog.get_logger("jwks")


class Key(Protocol):
    """What the signatures of one algorithm are checked with."""

    thumbprint: bytes | None
    """The same for the same key wherever it is read from, another for every other; None if checking is so cheap that no
    result need be remembered."""

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's for these bytes."""


class PublicKey:
    """A public key of a JWKS, made ready once: reading it costs more than checking a signature with it."""

    __slots__ = ("_algorithm", "key", "thumbprint")

    def __init__(self, members: Mapping[str, str], algorithm: Algorithm) -> None:
        """Raises ValueError or jwt.PyJWTError if the members are no key, or one that is too weak."""
        read = jwt.PyJWK(dict(members), algorithm)
        if fault := read.Algorithm.check_key_length(read.key):
            raise ValueError(fault)
        self._algorithm = read.Algorithm
        self.key = read.key
        self.thumbprint: bytes | None = hashlib.sha256(
            json.dumps(members, sort_keys=True, separators=(",", ":")).encode()  # as RFC 7638 has it
        ).digest()

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """See Key."""
        return bool(self._algorithm.verify(signed, self.key, signature))


class SharedKey:
    """The secret of an HS256 issuer."""

    __slots__ = ("_keyed", "thumbprint")

    def __init__(self, secret: str) -> None:
        """Raises jwt.InvalidKeyError for a public key or a certificate: everybody has those."""
        # Keyed once and copied: keying costs more than hashing a token.
        self._keyed = hmac.new(HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret), digestmod="sha256")
        self.thumbprint: bytes | None = None

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """See Key."""
        made = self._keyed.copy()
        made.update(signed)
        return hmac.compare_digest(made.digest(), signature)


class KeySource(Protocol):
    """One issuer's keys."""

    async def find(self, kid: str | None) -> Key | None:
        """The key with this id, or the only key for a token without one; None if there is none.

        Raises ServiceError(OVERLOADED) if no keys have been had yet.
        """


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of one JWKS document."""

    named: Mapping[str, PublicKey]
    nameless: tuple[PublicKey, ...]

    def __len__(self) -> int:
        return len(self.named) + len(self.nameless)

    def find(self, kid: str | None) -> PublicKey | None:
        """See KeySource. Guessing among several keys would only hide a misconfigured issuer."""
        if kid is not None:
            return self.named.get(kid)
        only = (*self.named.values(), *self.nameless)
        return only[0] if len(only) == 1 else None


# The public members of each key type: a private key in a JWKS is somebody's accident, and only its public half is read.
_PUBLIC: Mapping[str, Mapping[str, str | None]] = {
    "RS256": {"kty": "RSA", "n": None, "e": None},
    "ES256": {"kty": "EC", "crv": "P-256", "x": None, "y": None},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519", "x": None},
}
_NAMES: Mapping[str, frozenset[str]] = {"EdDSA": frozenset({"EdDSA", "Ed25519"})}
"""Where `alg` in a key may be spelt otherwise (RFC 9864)."""


def parse_keys(document: bytes, algorithm: Algorithm) -> KeySet:
    """Reads a JWKS. Keys of another type, use or algorithm are passed over, and so are broken or weak ones.

    Raises ValueError with a sentence if the document is no JWKS.
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
        key = _key(entry, algorithm)
        if key is None:
            continue
        kid = entry.get("kid")
        if isinstance(kid, str):
            named.setdefault(kid, key)
        else:
            nameless.append(key)
    return KeySet(named, tuple(nameless))


def _key(entry: Any, algorithm: Algorithm) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("alg", algorithm) not in _NAMES.get(algorithm, frozenset({algorithm})):
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    wanted = _PUBLIC[algorithm]
    if any(not isinstance(entry.get(name), str) or value not in (None, entry[name]) for name, value in wanted.items()):
        return None
    try:
        return PublicKey({name: entry[name] for name in wanted}, algorithm)
    except (jwt.PyJWTError, ValueError):
        return None


class SecretKey:
    """The secret shared with an HS256 issuer."""

    __slots__ = ("_key",)

    def __init__(self, secret: str) -> None:
        """Raises jwt.InvalidKeyError as SharedKey does."""
        self._key = SharedKey(secret)

    async def find(self, kid: str | None) -> Key:
        """See KeySource. There is one key, whatever a token calls it."""
        return self._key


class FileKeys:
    """Keys in a file, read again when it changes. A file that can't be read leaves the keys as they were."""

    def __init__(self, path: Path, algorithm: Algorithm, clock: Clock) -> None:
        self._path = path
        self._algorithm = algorithm
        self._clock = clock
        self._keys: KeySet | None = None
        self._seen: tuple[int, int, int] | None = None
        self._is_jwks = False
        """Whether what was seen last is one."""
        self._outage = OutageLog(_log, "jwks_file_unreadable", "jwks_file_readable", clock.monotonic)
        self._next_look = clock.monotonic()

    async def find(self, kid: str | None) -> Key | None:
        """See KeySource."""
        self._look()
        if self._keys is None:
            raise _no_keys()
        return self._keys.find(kid)

    def _look(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + FILE_LOOK
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                if self._is_jwks:
                    self._outage.recovered()
                return
            with self._path.open("rb") as file:
                document = file.read(MAX_DOCUMENT + 1)
            self._seen, self._is_jwks = seen, False  # a file that is no JWKS stays none until it changes
            self._keys = parse_keys(document, self._algorithm)
            self._is_jwks = True
            self._outage.recovered()
        except (OSError, ValueError) as error:
            self._outage.failed(path=str(self._path), reason=str(error), kept=self._keys is not None)


class UrlKeys:
    """Keys at an HTTPS address.

    Fetched when first needed, when they are no longer fresh, and for an unknown kid; one fetch at a time, which goes on
    when the request that began it has gone. A fetch that fails leaves the keys as they were. While stale keys are being
    fetched anew, only the request that began it waits: the others use the old ones.
    """

    def __init__(self, url: str, algorithm: Algorithm, clock: Clock, fetch: Fetch) -> None:
        self._url = url
        self._algorithm = algorithm
        self._clock = clock
        self._fetch = fetch
        self._keys: KeySet | None = None
        self._fresh_until = self._next_fetch = clock.monotonic()
        self._flight: asyncio.Task[None] | None = None
        self._outage = OutageLog(_log, "jwks_fetch_failed", "jwks_fetched", clock.monotonic)

    async def find(self, kid: str | None) -> Key | None:
        """See KeySource."""
        found = self._keys.find(kid) if self._keys is not None else None
        if found is not None and (self._flight is not None or self._clock.monotonic() < self._fresh_until):
            return found
        await self._refresh()
        if self._keys is None:
            raise _no_keys()
        return self._keys.find(kid)

    async def _refresh(self) -> None:
        if self._flight is None:
            now = self._clock.monotonic()
            if now < self._next_fetch:
                return
            self._next_fetch = now + (RETRY if self._keys is None else REFETCH)
            self._flight = asyncio.create_task(self._load(), name="jwks fetch")
        await asyncio.shield(self._flight)

    async def _load(self) -> None:
        try:
            self._keys = parse_keys(await self._fetch(self._url), self._algorithm)
            self._outage.recovered(url=self._url)
            now = self._clock.monotonic()
            self._fresh_until, self._next_fetch = now + FRESH, now + REFETCH
        except Exception as error:  # however it failed, the old keys hold, and the log says so
            self._outage.failed(
                url=self._url,
                reason=f"{type(error).__name__}: {error}",
                kept=self._keys is not None,
            )
        finally:
            self._flight = None


def _no_keys() -> ServiceError:
    return ServiceError(ErrorCode.OVERLOADED, "the issuer's keys cannot be had right now; try again in a few seconds")
