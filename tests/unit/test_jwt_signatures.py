"""The signature cache: it stores that a signature was valid, nothing else, and only while its key is the same."""

from __future__ import annotations

import gc
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from service.adapters.jwt.authenticator import JwtAuthenticator
from service.adapters.jwt.issuer import Issuer
from service.adapters.jwt.key_sources import FILE_CHECK_INTERVAL
from service.adapters.jwt.keys import Algorithm, PublicKey, SharedKey
from service.adapters.jwt.signature_cache import SignatureCache
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from tests.support.clock import START, FakeClock
from tests.unit.jwt_issuer import AUDIENCE, ISSUER, SECRET, KeyPair, claims, hs256, jwks, pair, signed_by

NOW = int(START)
LIFE = 3600
LEEWAY = 5.0


class Desk:
    """An authenticator with a JWKS file and a clock; counts verified and cached signatures."""

    def __init__(self, file: Path, remember: int = 3, algorithm: Algorithm = "RS256") -> None:
        self.file = file
        self.clock = FakeClock()
        self.metrics = Metrics()
        issuer = Issuer(ISSUER, AUDIENCE, algorithm, jwks_file=file, leeway=LEEWAY)
        self._authenticator = JwtAuthenticator(
            [issuer], self.clock, _no_fetch, max_cached_signatures=remember, metrics=self.metrics
        )

    def publish(self, *keys: KeyPair | dict[str, Any]) -> None:
        """Replaces the keys."""
        self.file.write_bytes(jwks(*keys) + b" " * int(self.clock.monotonic() - 1000))  # another size: another file
        self.clock.advance(FILE_CHECK_INTERVAL)

    async def user(self, token: str) -> str:
        return (await self._authenticator.authenticate(token)).user

    async def refusal(self, token: str) -> ErrorCode:
        with pytest.raises(ServiceError) as refused:
            await self.user(token)
        return refused.value.code

    def counts(self) -> tuple[float, ...]:
        return counts(self.metrics)


def counts(metrics: Metrics) -> tuple[float, ...]:
    """Verified and cached signatures."""
    counter = metrics.clients.token_signatures
    return counter.labels(outcome="checked").value, counter.labels(outcome="remembered").value


async def _no_fetch(url: str) -> bytes:
    raise AssertionError(url)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path / "keys.json")
    desk.publish(pair("one"))
    return desk


def token(key: str = "one", **changes: Any) -> str:
    return signed_by(pair(key), claims(**changes), kid="one")


async def test_signature_of_repeated_token_is_cached(desk: Desk) -> None:
    ann = token(sub="ann")
    assert [await desk.user(ann) for _ in range(3)] == ["ann"] * 3
    assert desk.counts() == (1, 2)


async def test_signature_cached_token_is_still_checked_for_claims(desk: Desk) -> None:
    ann = token(sub="ann", exp=NOW + LIFE, iat=NOW)
    await desk.user(ann)
    desk.clock.advance(LIFE + LEEWAY)
    assert await desk.refusal(ann) is ErrorCode.TOKEN_EXPIRED
    early = token(exp=NOW + 10 * LIFE, nbf=NOW + 2 * LIFE)
    assert await desk.refusal(early) is ErrorCode.INVALID_TOKEN  # though its signature is right, and remembered
    desk.clock.advance(LIFE)
    assert await desk.user(early) == "ann"
    assert desk.counts() == (2, 2)


async def test_signature_cached_for_withdrawn_key_is_refused(desk: Desk) -> None:
    ann = token()
    await desk.user(ann)
    desk.publish(pair("two"))
    assert await desk.refusal(ann) is ErrorCode.INVALID_TOKEN
    desk.publish()
    assert await desk.refusal(ann) is ErrorCode.INVALID_TOKEN


async def test_signature_cached_for_replaced_key_is_refused(desk: Desk) -> None:
    ann, bob = token(), token("two", sub="bob")
    await desk.user(ann)
    desk.publish(pair("two").public_jwk(kid="one"))
    assert await desk.refusal(ann) is ErrorCode.INVALID_TOKEN
    assert await desk.user(bob) == "bob"
    desk.publish(pair("one"))
    assert await desk.refusal(bob) is ErrorCode.INVALID_TOKEN
    assert await desk.user(ann) == "ann"


async def test_signature_cached_for_republished_key_is_accepted(desk: Desk) -> None:
    ann = token()
    await desk.user(ann)
    desk.publish(pair("two"), pair("one").public_jwk(use=None, alg=None))
    assert await desk.user(ann) == "ann"
    assert desk.counts() == (1, 1)


async def test_signature_wrong_one_is_refused_beside_cached_one(desk: Desk) -> None:
    ann = token()
    await desk.user(ann)
    head, _, signature = ann.rpartition(".")
    evil = token("evil").rpartition(".")[2]
    for forged in (f"{head}.{evil}", f"{head}.{'A' * len(signature)}", token("evil"), f"{head}.{signature}{signature}"):
        assert [await desk.refusal(forged) for _ in range(2)] == [ErrorCode.INVALID_TOKEN] * 2
    assert desk.counts() == (9, 0)


@pytest.mark.parametrize(("remember", "counts"), [(0, (3, 0)), (1, (1, 2))])
async def test_signature_cache_has_configured_size(tmp_path: Path, remember: int, counts: tuple[int, int]) -> None:
    desk = Desk(tmp_path / "keys.json", remember)
    desk.publish(pair("one"))
    ann = token()
    for _ in range(3):
        await desk.user(ann)
    assert desk.counts() == counts


async def test_signature_cache_evicts_least_recently_used_first(desk: Desk) -> None:
    ann, bob, cem, dee = (token(sub=name) for name in ("ann", "bob", "cem", "dee"))
    for each in (ann, bob, cem, ann, dee):  # dee takes the place of bob
        await desk.user(each)
    assert desk.counts() == (4, 1)
    for each in (ann, cem, dee):
        await desk.user(each)
    assert desk.counts() == (4, 4)
    await desk.user(bob)
    assert desk.counts() == (5, 4)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_signature_of_every_public_key_algorithm_is_cached(tmp_path: Path, algorithm: Algorithm) -> None:
    key = pair("one", algorithm)
    desk = Desk(tmp_path / "keys.json", algorithm=algorithm)
    desk.publish(key)
    ann = signed_by(key, claims())
    assert [await desk.user(ann) for _ in range(2)] == ["ann"] * 2
    assert desk.counts() == (1, 1)


class _Yes:
    """A key that accepts every signature."""

    thumbprint: bytes | None = b"yes"

    def verify(self, signed: bytes, signature: bytes) -> bool:
        return True


def test_signature_cache_stores_no_token() -> None:
    signatures = SignatureCache(10, Metrics())
    whole = token().encode()
    assert signatures.verify(_Yes(), b"", b"", whole)
    digest, thumbprint = sorted(_bytes_in(signatures), key=len, reverse=True)
    assert (len(digest), thumbprint) == (32, b"yes")
    assert digest not in whole


def _bytes_in(root: object) -> set[bytes]:
    """All bytes that an object holds, in whatever it holds."""
    found, left, seen = set[bytes](), [root], set[int]()
    while left:
        held = left.pop()
        if isinstance(held, bytes):
            found.add(held)
        elif not isinstance(held, type) and id(held) not in seen:
            seen.add(id(held))
            left += gc.get_referents(held)
    return found


def test_signature_wrong_one_is_not_cached() -> None:
    metrics = Metrics()
    signatures, key = SignatureCache(10, metrics), _public("one")
    whole = token().encode()
    signed, _, signature = whole.rpartition(b".")
    for _ in range(2):
        assert not signatures.verify(key, signed, signature, whole)  # still base64url: the wrong bytes
    assert counts(metrics) == (2, 0)


def test_signature_of_shared_secret_is_not_cached() -> None:
    metrics = Metrics()
    signatures, key = SignatureCache(10, metrics), SharedKey(SECRET)
    whole = hs256(claims()).encode()
    signed, _, signature = whole.rpartition(b".")
    assert signatures.verify(key, signed, urlsafe_b64decode(signature + b"="), whole)
    assert not signatures.verify(key, signed, b"x" * 32, whole)
    assert counts(metrics) == (0, 0)


def _public(kid: str) -> PublicKey:
    return PublicKey(_members(pair(kid)), "RS256")


def _members(key: KeyPair) -> dict[str, str]:
    jwk = key.public_jwk()
    return {name: jwk[name] for name in ("kty", "n", "e")}


def test_key_thumbprint_depends_on_key_only() -> None:
    # RFC 7638 §3.1, its own example: what it is called, and what for, are not part of it.
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
        "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91"
        "CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = PublicKey({"kty": "RSA", "n": n, "e": "AQAB"}, "RS256")
    expected = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert key.thumbprint is not None
    assert urlsafe_b64encode(key.thumbprint).rstrip(b"=").decode() == expected


PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBm/RAlphM3+hUG6wWfcO5bIUIaqMLa2ywxcOK1wMWbh ann@example.com"


@pytest.mark.parametrize("secret", [PEM, SSH])
def test_shared_key_from_public_key_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="everybody who has it could sign") as refused:
        Issuer(ISSUER, AUDIENCE, "HS256", secret=secret)
    assert secret not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: {"kty": "RSA"}, jwt.InvalidKeyError),
        (lambda: _members(pair("weak", bits=1024)), ValueError),
    ],
)
def test_public_key_invalid_or_weak_is_refused(make: Callable[[], dict[str, str]], error: type[Exception]) -> None:
    with pytest.raises(error):
        PublicKey(make(), "RS256")
