"""Key sources: which keys of a JWKS count, rotation, and the rate of fetches."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.adapters.jwt.authenticator import JwtAuthenticator
from service.adapters.jwt.issuer import Issuer
from service.adapters.jwt.key_sources import FILE_CHECK_INTERVAL, KEYS_TTL, MIN_FETCH_INTERVAL, RETRY_INTERVAL
from service.adapters.jwt.keys import MAX_DOCUMENT, parse_keys
from service.errors import ErrorCode, ServiceError
from tests.support.clock import START, FakeClock
from tests.unit.jwt_issuer import AUDIENCE, ISSUER, KeyPair, claims, hs256, jwks, pair, signed_by

URL = "https://id.example.com/keys"


class Endpoint:
    """A JWKS URL: counts requests, answers what a test sets, and waits while a test holds it."""

    def __init__(self, document: bytes | Exception) -> None:
        self.document = document
        self.asked: list[str] = []
        self.free = asyncio.Event()
        self.free.set()
        self.reached = asyncio.Event()

    async def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        self.reached.set()
        await self.free.wait()
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    def hold(self) -> None:
        self.free.clear()
        self.reached.clear()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def of_url(clock: FakeClock, endpoint: Endpoint) -> JwtAuthenticator:
    return JwtAuthenticator([Issuer(ISSUER, AUDIENCE, "RS256", jwks_url=URL)], clock, endpoint)


def of_file(clock: FakeClock, path: Path) -> JwtAuthenticator:
    async def fetch(url: str) -> bytes:
        raise AssertionError(url)

    return JwtAuthenticator([Issuer(ISSUER, AUDIENCE, "RS256", jwks_file=path)], clock, fetch)


def token(key: KeyPair, **header: Any) -> str:
    return signed_by(key, claims(exp=int(START) + 86_400), **header)


async def refusal(authenticator: JwtAuthenticator, key: KeyPair, **header: Any) -> ErrorCode:
    with pytest.raises(ServiceError) as refused:
        await authenticator.authenticate(token(key, **header))
    return refused.value.code


# --- which keys count -------------------------------------------------------------------------------------------------


def test_key_set_finds_key_by_id() -> None:
    keys = parse_keys(jwks(pair("one"), pair("two")), "RS256")
    assert set(keys.named) == {"one", "two"}
    assert keys.find("one") is keys.named["one"]
    assert keys.find("three") is None


def test_key_set_without_id_finds_only_key() -> None:
    assert parse_keys(jwks(pair("one")), "RS256").find(None) is not None
    assert parse_keys(jwks(pair("one").public_jwk(kid=None)), "RS256").find(None) is not None
    assert parse_keys(jwks(pair("one"), pair("two")), "RS256").find(None) is None
    assert parse_keys(jwks(), "RS256").find(None) is None


@pytest.mark.parametrize(
    "unusable",
    [
        pytest.param({"use": "enc"}, id="for encryption"),
        pytest.param({"alg": "RS512"}, id="for another algorithm"),
        pytest.param({"alg": None, "kty": "oct", "k": "c2VjcmV0"}, id="a shared secret"),
        pytest.param({"alg": None, "kty": "EC"}, id="of another type"),
        pytest.param({"key_ops": ["encrypt"]}, id="for another operation"),
        pytest.param({"key_ops": "verify"}, id="operations not a list"),
        pytest.param({"n": None}, id="a member missing"),
        pytest.param({"n": 7}, id="a member of the wrong type"),
        pytest.param({"n": "!"}, id="a member not base64url"),
        pytest.param({"n": pair("weak", bits=1024).public_jwk()["n"]}, id="1024 bits"),
    ],
)
def test_jwks_unusable_key_is_skipped(unusable: dict[str, Any]) -> None:
    keys = parse_keys(jwks(pair("bad").public_jwk(**unusable), pair("good")), "RS256")
    assert (set(keys.named), keys.nameless) == ({"good"}, ())


def test_jwks_key_of_another_curve_is_skipped() -> None:
    assert not parse_keys(jwks(pair("one", "ES256").public_jwk(crv="P-384")), "ES256").named
    assert not parse_keys(jwks(pair("one", "EdDSA").public_jwk(crv="Ed448")), "EdDSA").named
    assert not parse_keys(jwks(pair("one", "EdDSA")), "ES256").named


def test_jwks_alg_ed25519_is_eddsa() -> None:
    assert set(parse_keys(jwks(pair("one", "EdDSA").public_jwk(alg="Ed25519")), "EdDSA").named) == {"one"}


def test_jwks_first_key_of_an_id_counts() -> None:
    keys = parse_keys(jwks(pair("one"), pair("two").public_jwk(kid="one")), "RS256")
    assert keys.named["one"].key.public_numbers() == pair("one").private.public_key().public_numbers()  # type: ignore[union-attr]  # an RSA key


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_jwks_private_key_is_read_as_public_key(algorithm: Any) -> None:
    keys = parse_keys(jwks(pair("one", algorithm).private_jwk()), algorithm)
    assert not hasattr(keys.named["one"].key, "private_numbers")
    assert not hasattr(keys.named["one"].key, "private_bytes")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "not an object"),
        (b'{"keys": {}}', "not an object"),
        (b'{"keys": []}' + b" " * MAX_DOCUMENT, "larger than"),
    ],
)
def test_jwks_invalid_document_is_refused(document: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_keys(document, "RS256")


def test_jwks_entry_that_is_no_object_is_skipped() -> None:
    assert parse_keys(json.dumps({"keys": [1, None, "x", []]}).encode(), "RS256").find(None) is None


# --- an address -------------------------------------------------------------------------------------------------------


async def test_url_source_fetches_at_first_use_and_keeps_fresh_keys(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    assert endpoint.asked == []
    for _ in range(3):
        await authenticator.authenticate(token(pair("one")))
    clock.advance(KEYS_TTL - 1)
    await authenticator.authenticate(token(pair("one")))
    assert endpoint.asked == [URL]
    clock.advance(1)
    await authenticator.authenticate(token(pair("one")))
    assert endpoint.asked == [URL, URL]


async def test_url_source_fetches_unknown_key_id(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    await authenticator.authenticate(token(pair("one")))
    endpoint.document = jwks(pair("one"), pair("two"))
    clock.advance(MIN_FETCH_INTERVAL)
    await authenticator.authenticate(token(pair("two")))
    await authenticator.authenticate(token(pair("one")))
    assert len(endpoint.asked) == 2


async def test_url_source_withdrawn_key_is_refused_after_next_fetch(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    await authenticator.authenticate(token(pair("one")))
    endpoint.document = jwks()
    clock.advance(KEYS_TTL)
    assert await refusal(authenticator, pair("one")) is ErrorCode.INVALID_TOKEN


async def test_url_source_unknown_key_ids_cause_one_fetch_in_thirty_seconds(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    for n in range(1, 301):  # ten a second for thirty seconds
        assert await refusal(authenticator, pair("evil"), kid=f"k-{n}") is ErrorCode.INVALID_TOKEN
        clock.advance(0.1)
    assert len(endpoint.asked) == 1
    clock.advance(0.1)
    assert await refusal(authenticator, pair("evil")) is ErrorCode.INVALID_TOKEN
    assert len(endpoint.asked) == 2


async def test_url_source_refused_token_causes_no_fetch(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    for hopeless in (
        hs256(claims()),
        token(pair("one", "ES256")),
        token(pair("one"), kid=7),
        token(pair("one"), crit=["x"], x=1),
        signed_by(pair("one"), claims(iss="https://evil.example")),
    ):
        with pytest.raises(ServiceError) as refused:
            await authenticator.authenticate(hopeless)
        assert refused.value.code is ErrorCode.INVALID_TOKEN
    assert endpoint.asked == []


async def test_url_source_parallel_requests_share_one_fetch(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    endpoint.hold()
    authenticator = of_url(clock, endpoint)
    requests = [asyncio.create_task(authenticator.authenticate(token(pair("one")))) for _ in range(50)]
    async with asyncio.timeout(5):
        await endpoint.reached.wait()
        endpoint.free.set()
        identities = await asyncio.gather(*requests)
    assert {identity.user for identity in identities} == {"ann"}
    assert len(endpoint.asked) == 1


async def test_url_source_fetch_outlives_cancelled_request(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    endpoint.hold()
    authenticator = of_url(clock, endpoint)
    first = asyncio.create_task(authenticator.authenticate(token(pair("one"))))
    async with asyncio.timeout(5):
        await endpoint.reached.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(authenticator.authenticate(token(pair("one"))))
        endpoint.free.set()
        assert (await second).user == "ann"
    assert len(endpoint.asked) == 1


async def test_url_source_old_keys_serve_others_during_fetch(clock: FakeClock) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    await authenticator.authenticate(token(pair("one")))
    clock.advance(KEYS_TTL)
    endpoint.hold()
    first = asyncio.create_task(authenticator.authenticate(token(pair("one"))))
    async with asyncio.timeout(5):
        await endpoint.reached.wait()
        assert (await authenticator.authenticate(token(pair("one")))).user == "ann"
        assert not first.done()
        endpoint.free.set()
        await first


@pytest.mark.parametrize(
    "failure",
    [OSError("no route"), TimeoutError(), b"<html>", RuntimeError("anything")],
    ids=["OS", "time", "html", "bug"],
)
async def test_url_source_failed_fetch_keeps_old_keys(clock: FakeClock, failure: bytes | Exception) -> None:
    endpoint = Endpoint(jwks(pair("one")))
    authenticator = of_url(clock, endpoint)
    await authenticator.authenticate(token(pair("one")))
    endpoint.document = failure
    clock.advance(KEYS_TTL)
    for _ in range(5):
        await authenticator.authenticate(token(pair("one")))
    assert len(endpoint.asked) == 2  # and a failing issuer isn't asked more often
    clock.advance(MIN_FETCH_INTERVAL)
    await authenticator.authenticate(token(pair("one")))
    assert len(endpoint.asked) == 3


async def test_url_source_without_keys_raises_overloaded(clock: FakeClock) -> None:
    endpoint = Endpoint(OSError("no route"))
    authenticator = of_url(clock, endpoint)
    for _ in range(5):
        assert await refusal(authenticator, pair("one")) is ErrorCode.OVERLOADED
    assert len(endpoint.asked) == 1
    endpoint.document = jwks(pair("one"))
    clock.advance(RETRY_INTERVAL)
    await authenticator.authenticate(token(pair("one")))
    assert len(endpoint.asked) == 2


# --- a file -----------------------------------------------------------------------------------------------------------


def write(path: Path, document: bytes, modified: int) -> None:
    path.write_bytes(document)
    os.utime(path, (modified, modified))


async def test_file_source_reads_changed_file(clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, jwks(pair("one")), modified=1)
    authenticator = of_file(clock, path)
    await authenticator.authenticate(token(pair("one")))
    write(path, jwks(pair("two")), modified=2)
    assert await refusal(authenticator, pair("two")) is ErrorCode.INVALID_TOKEN  # not looked at yet
    clock.advance(FILE_CHECK_INTERVAL)
    await authenticator.authenticate(token(pair("two")))
    assert await refusal(authenticator, pair("one")) is ErrorCode.INVALID_TOKEN


async def test_file_source_missing_or_invalid_file_keeps_old_keys(clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, jwks(pair("one")), modified=1)
    authenticator = of_file(clock, path)
    await authenticator.authenticate(token(pair("one")))
    path.unlink()
    clock.advance(FILE_CHECK_INTERVAL)
    await authenticator.authenticate(token(pair("one")))
    write(path, b'{"keys": [', modified=2)
    clock.advance(FILE_CHECK_INTERVAL)
    await authenticator.authenticate(token(pair("one")))
    write(path, jwks(pair("two")), modified=3)
    clock.advance(FILE_CHECK_INTERVAL)
    await authenticator.authenticate(token(pair("two")))


async def test_file_source_without_file_raises_overloaded(clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    authenticator = of_file(clock, path)
    assert await refusal(authenticator, pair("one")) is ErrorCode.OVERLOADED
    write(path, jwks(pair("one")), modified=1)
    clock.advance(FILE_CHECK_INTERVAL)
    await authenticator.authenticate(token(pair("one")))


async def test_file_source_too_large_file_is_refused(clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, jwks(pair("one")) + b" " * MAX_DOCUMENT, modified=1)
    assert await refusal(of_file(clock, path), pair("one")) is ErrorCode.OVERLOADED


# --- what is logged ---------------------------------------------------------------------------------------------------


async def test_url_source_logs_failed_fetches_once_and_recovery_once(clock: FakeClock) -> None:
    endpoint = Endpoint(OSError("no route"))
    authenticator = of_url(clock, endpoint)
    with capture_logs() as logs:
        for _ in range(5):
            assert await refusal(authenticator, pair("one")) is ErrorCode.OVERLOADED
            clock.advance(RETRY_INTERVAL)
        endpoint.document = jwks(pair("one"))
        await authenticator.authenticate(token(pair("one")))
    assert [(entry["event"], entry.get("seconds")) for entry in logs] == [
        ("jwks_fetch_failed", None),
        ("jwks_fetched", 5 * RETRY_INTERVAL),
    ]


async def test_file_source_logs_each_failure_reason_once(clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, jwks(pair("one")), modified=1)
    authenticator = of_file(clock, path)
    await authenticator.authenticate(token(pair("one")))
    with capture_logs() as logs:
        path.unlink()
        for document in (None, b'{"keys": [', b'{"keys": [', jwks(pair("one"))):
            if document is not None:
                write(path, document, modified=2)
            for _ in range(3):
                clock.advance(FILE_CHECK_INTERVAL)
                await authenticator.authenticate(token(pair("one")))
    assert [entry["event"] for entry in logs] == ["jwks_file_unreadable", "jwks_file_unreadable", "jwks_file_readable"]
    assert logs[0]["reason"] != logs[1]["reason"]
