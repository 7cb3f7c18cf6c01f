"""Where an issuer's keys come from: a shared secret, a JWKS file or a JWKS URL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import structlog

from service.adapters.jwt.issuer import Issuer
from service.adapters.jwt.keys import MAX_DOCUMENT, Algorithm, Key, KeySet, SharedKey, parse_keys
from service.aio.single_flight import SingleFlight
from service.core.clock import Clock
from service.errors import ErrorCode, ServiceError
from service.telemetry.outage import OutageLog

Fetch = Callable[[str], Awaitable[bytes]]
"""Returns a document. It bounds its time and size itself, and raises any exception if it fails."""

FILE_CHECK_INTERVAL = 1.0
"""Seconds between two checks of a file's modification time."""
KEYS_TTL = 300.0
"""Seconds that fetched keys are used without another fetch."""
MIN_FETCH_INTERVAL = 30.0
"""Seconds between two fetches, however many unknown key ids clients send."""
RETRY_INTERVAL = 5.0
"""The same before the first fetch has succeeded."""

_log = structlog.get_logger("jwks")


class KeySource(Protocol):
    """The keys of one issuer."""

    def find_now(self, kid: str | None) -> Key | None:
        """Returns what `find` returns, if that needs no wait and there is such a key. Otherwise returns None: call `find`."""

    async def find(self, kid: str | None) -> Key | None:
        """Returns the key with this id; for a token without one, the only key. None if there is none.

        Raises ServiceError(OVERLOADED) before any keys were read.
        """


def key_source(issuer: Issuer, clock: Clock, fetch: Fetch) -> KeySource:
    """Returns the source that an issuer's settings name."""
    if issuer.secret is not None:
        return SecretSource(issuer.secret)
    if issuer.jwks_file is not None:
        return FileSource(issuer.jwks_file, issuer.algorithm, clock)
    assert issuer.jwks_url is not None  # noqa: S101  # Issuer has checked that there is exactly one
    return UrlSource(issuer.jwks_url, issuer.algorithm, clock, fetch)


class SecretSource:
    """The secret of an HS256 issuer: one key, whatever id a token gives it."""

    __slots__ = ("_key",)

    def __init__(self, secret: str) -> None:
        """Raises jwt.InvalidKeyError as SharedKey does."""
        self._key = SharedKey(secret)

    def find_now(self, kid: str | None) -> Key:
        """Returns the secret."""
        return self._key

    async def find(self, kid: str | None) -> Key:
        """Returns the secret."""
        return self._key


class FileSource:
    """Keys in a file, which is read again when it changes. While it cannot be read, the last keys stay in use."""

    def __init__(self, path: Path, algorithm: Algorithm, clock: Clock) -> None:
        self._path = path
        self._algorithm = algorithm
        self._clock = clock
        self._keys: KeySet | None = None
        self._last_stat: tuple[int, int, int] | None = None
        self._is_valid = False
        """Whether the file was a JWKS when it was read last."""
        self._outage = OutageLog(_log, "jwks_file_unreadable", "jwks_file_readable", clock.monotonic)
        self._next_check = clock.monotonic()

    def find_now(self, kid: str | None) -> Key | None:
        """Reads the file if it has changed."""
        self._check()
        return None if self._keys is None else self._keys.find(kid)

    async def find(self, kid: str | None) -> Key | None:
        """Reads the file if it has changed."""
        found = self.find_now(kid)
        if self._keys is None:
            raise _no_keys()
        return found

    def _check(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + FILE_CHECK_INTERVAL
        try:
            status = self._path.stat()
            stat = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stat == self._last_stat:
                if self._is_valid:
                    self._outage.recovered()
                return
            with self._path.open("rb") as file:
                document = file.read(MAX_DOCUMENT + 1)
            self._last_stat, self._is_valid = stat, False  # an invalid file is not read again until it changes
            self._keys = parse_keys(document, self._algorithm)
            self._is_valid = True
            self._outage.recovered()
        except (OSError, ValueError) as error:
            self._outage.failed(path=str(self._path), reason=str(error), kept=self._keys is not None)


class UrlSource:
    """Keys at an HTTPS URL, fetched when first needed, when they are older than `KEYS_TTL`, and for an unknown key id.

    All requests that need a fetch share it, and it continues if the request that started it is cancelled. While it fails, the
    last keys stay in use. While old keys are fetched again, only the request that started the fetch waits.
    """

    def __init__(self, url: str, algorithm: Algorithm, clock: Clock, fetch: Fetch) -> None:
        self._url = url
        self._algorithm = algorithm
        self._clock = clock
        self._fetch = fetch
        self._keys: KeySet | None = None
        self._fresh_until = self._next_fetch = clock.monotonic()
        self._fetching = SingleFlight("jwks fetch", self._fetch_keys)
        self._outage = OutageLog(_log, "jwks_fetch_failed", "jwks_fetched", clock.monotonic)

    def find_now(self, kid: str | None) -> Key | None:
        """Returns a known key, unless this request has to fetch old keys again."""
        found = self._keys.find(kid) if self._keys is not None else None
        if found is not None and (self._fetching.is_running or self._clock.monotonic() < self._fresh_until):
            return found
        return None

    async def find(self, kid: str | None) -> Key | None:
        """Fetches the keys if they are old, or the key is unknown."""
        found = self.find_now(kid)
        if found is not None:
            return found
        await self._refresh()
        if self._keys is None:
            raise _no_keys()
        return self._keys.find(kid)

    async def _refresh(self) -> None:
        if not self._fetching.is_running:
            now = self._clock.monotonic()
            if now < self._next_fetch:
                return
            self._next_fetch = now + (RETRY_INTERVAL if self._keys is None else MIN_FETCH_INTERVAL)
        await self._fetching.result()

    async def _fetch_keys(self) -> None:
        try:
            self._keys = parse_keys(await self._fetch(self._url), self._algorithm)
            self._outage.recovered(url=self._url)
            now = self._clock.monotonic()
            self._fresh_until, self._next_fetch = now + KEYS_TTL, now + MIN_FETCH_INTERVAL
        except Exception as error:  # however it failed, the last keys stay in use, and the log says so
            self._outage.failed(
                url=self._url,
                reason=f"{type(error).__name__}: {error}",
                kept=self._keys is not None,
            )


def _no_keys() -> ServiceError:
    return ServiceError(ErrorCode.OVERLOADED, "the issuer's keys cannot be had right now; try again in a few seconds")
