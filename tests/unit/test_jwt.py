"""Valid tokens, and a set of forgeries: every way in which a token can be wrong, with its error code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.adapters.jwt.authenticator import JwtAuthenticator
from service.adapters.jwt.claims import MAX_TIME
from service.adapters.jwt.issuer import Issuer
from service.adapters.jwt.keys import Algorithm
from service.core.authenticator import Authenticator
from service.core.claims import MAX_INFO, MAX_USER
from service.core.identity import Grant, Identity, Right
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import MAX_TOKEN
from tests.support.clock import START, FakeClock
from tests.unit.jwt_issuer import AUDIENCE, ISSUER, SECRET, claims, hs256, jwks, pair, segment, sign, signed_by

NOW = int(START)
LEEWAY = 5
OTHER_ISSUER = "https://other.example.com"
OTHER_SECRET = "quite another secret of thirty-two bytes or more"


async def no_fetch(url: str) -> bytes:
    raise AssertionError(f"nothing is to be fetched, least of all {url}")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def authenticator(clock: FakeClock, tmp_path: Path) -> Authenticator:
    """An authenticator with one RS256 issuer (with a JWKS file) and one HS256 issuer."""
    keys = tmp_path / "keys.json"
    keys.write_bytes(jwks(pair("one")))
    (tmp_path / "evil.json").write_bytes(jwks(pair("evil")))
    return JwtAuthenticator(
        [
            Issuer(ISSUER, AUDIENCE, "RS256", jwks_file=keys, leeway=LEEWAY),
            Issuer(OTHER_ISSUER, AUDIENCE, "HS256", secret=OTHER_SECRET, leeway=LEEWAY),
        ],
        clock,
        no_fetch,
    )


def rs256(payload: dict[str, Any] | bytes, **header: Any) -> str:
    return signed_by(pair("one"), payload, **header)


# --- accepted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_token_signed_by_issuer_key_is_accepted(algorithm: Algorithm, tmp_path: Path) -> None:
    key = pair("one", algorithm)
    (tmp_path / "keys.json").write_bytes(jwks(key))
    issuer = Issuer(ISSUER, AUDIENCE, algorithm, jwks_file=tmp_path / "keys.json")
    identity = await JwtAuthenticator([issuer], FakeClock(), no_fetch).authenticate(signed_by(key, claims()))
    assert identity == Identity(tenant="default", user="ann", expires_at=NOW + 3600.0, issued_at=NOW)


async def test_token_signed_with_shared_secret_is_accepted() -> None:
    authenticator = JwtAuthenticator([Issuer(ISSUER, AUDIENCE, "HS256", secret=SECRET)], FakeClock(), no_fetch)
    assert (await authenticator.authenticate(hs256(claims()))).user == "ann"
    assert (await authenticator.authenticate(hs256(claims(), kid="whatever"))).user == "ann"


async def test_token_claims_reach_the_identity(authenticator: Authenticator) -> None:
    token = rs256(
        claims(
            tenant="acme.eu-1",
            sub="Zoë Ångström",
            grants=["room:*", {"channel": "log:**", "rights": ["history", "presence"]}],
            info={"name": "Zoë", "age": 7},
            nbf=NOW,
            exp=NOW + 60.5,
            iat=NOW - 1.5,
            jti="4f1c9a",
        )
    )
    identity = await authenticator.authenticate(token)
    assert "4f1c9a" not in repr(identity)
    assert identity == Identity(
        tenant="acme.eu-1",
        user="Zoë Ångström",
        grants=(Grant("room:*"), Grant("log:**", frozenset({Right.HISTORY, Right.PRESENCE}))),
        expires_at=NOW + 60.5,
        info='{"name":"Zoë","age":7}'.encode(),
        issued_at=NOW - 1.5,
        token_id="4f1c9a",
    )


async def test_token_without_iat_and_jti_is_accepted(authenticator: Authenticator) -> None:
    identity = await authenticator.authenticate(rs256(claims(iat=None)))
    assert (identity.issued_at, identity.token_id) == (None, None)


@pytest.mark.parametrize("id", ["", 7, ["a"], {}, True, "x" * 257])
async def test_token_with_unrevocable_id_is_refused(authenticator: Authenticator, id: Any) -> None:
    with pytest.raises(ServiceError, match="'jti'"):
        await authenticator.authenticate(rs256(claims(jti=id)))


async def test_issuer_settings_name_claims_and_default_tenant() -> None:
    issuer = Issuer(
        ISSUER,
        AUDIENCE,
        "HS256",
        secret=SECRET,
        tenant_claim="https://example.com/org",
        default_tenant="nobody",
        grants_claim="scope",
        info_claim="profile",
    )
    authenticator = JwtAuthenticator([issuer], FakeClock(), no_fetch)
    named = claims(
        scope=["a:*"], profile={"n": 1}, tenant="ignored", grants=7, info=7, **{"https://example.com/org": "org"}
    )
    identity = await authenticator.authenticate(hs256(named))
    assert (identity.tenant, identity.grants, identity.info) == ("org", (Grant("a:*"),), b'{"n":1}')
    assert (await authenticator.authenticate(hs256(claims(tenant="ignored")))).tenant == "nobody"


async def test_token_with_several_audiences_is_accepted(authenticator: Authenticator) -> None:
    assert (await authenticator.authenticate(rs256(claims(aud=["elsewhere", AUDIENCE])))).user == "ann"


async def test_token_header_keys_and_key_urls_are_ignored(authenticator: Authenticator) -> None:
    # Some issuers send them; the signature is still checked against the configured key, and nothing is fetched.
    token = rs256(
        claims(), jku="https://evil.example/keys", x5u="https://evil.example/cert", jwk=pair("evil").public_jwk()
    )
    assert (await authenticator.authenticate(token)).user == "ann"


@pytest.mark.parametrize(
    "times",
    [
        pytest.param({"exp": NOW - LEEWAY + 1}, id="expired within the leeway"),
        pytest.param({"nbf": NOW + LEEWAY}, id="not yet valid within the leeway"),
        pytest.param({"iat": NOW + LEEWAY}, id="issued in the future within the leeway"),
        pytest.param({"exp": MAX_TIME}, id="the last moment that is believed"),
    ],
)
async def test_token_times_within_leeway_are_accepted(authenticator: Authenticator, times: dict[str, int]) -> None:
    assert (await authenticator.authenticate(rs256(claims(**times)))).user == "ann"


async def test_token_expires_by_injected_clock(authenticator: Authenticator, clock: FakeClock) -> None:
    token = rs256(claims(exp=NOW + 60))
    clock.advance(60 + LEEWAY - 1)
    assert (await authenticator.authenticate(token)).user == "ann"
    clock.advance(1)
    with pytest.raises(ServiceError) as refused:
        await authenticator.authenticate(token)
    assert refused.value.code is ErrorCode.TOKEN_EXPIRED


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param({"sub": "x" * MAX_USER}, id="sub"),
        pytest.param({"tenant": "t" * 64}, id="tenant"),
        pytest.param({"info": {"n": "x" * (MAX_INFO - len('{"n":""}'))}}, id="info"),
    ],
)
async def test_token_claim_of_maximum_size_is_accepted(authenticator: Authenticator, bounds: dict[str, Any]) -> None:
    await authenticator.authenticate(rs256(claims(**bounds)))


# --- refused ----------------------------------------------------------------------------------------------------------


def _tampered() -> str:
    head, _, signature = rs256(claims()).split(".")
    return f"{head}.{segment(claims(sub='root'))}.{signature}"


def _confused() -> str:
    public = pair("one").private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hs256(claims(), secret=public.decode(), kid="one")


def _oversized() -> str:
    token = rs256(claims(padding="x" * MAX_TOKEN))
    assert len(token) > MAX_TOKEN
    return token


def _raw_claims(**raw: str) -> bytes:
    """Claims with values that json.dumps cannot write."""
    return json.dumps(claims(**dict.fromkeys(raw, 0))).replace(" 0", " %s").encode() % tuple(
        value.encode() for value in raw.values()
    )


def _deep() -> bytes:
    return b'{"iss": "%s", "info": %s1%s}' % (ISSUER.encode(), b"[" * 2500, b"]" * 2500)


INVALID: dict[str, Callable[[], str]] = {
    # unsigned, or signed by the wrong party
    "alg none, no signature": lambda: f"{segment({'alg': 'none', 'kid': 'one'})}.{segment(claims())}.",
    "alg none, some signature": lambda: f"{segment({'alg': 'none', 'kid': 'one'})}.{segment(claims())}.c2ln",
    "alg None in capitals": lambda: rs256(claims(), alg="NoNe"),
    "alg missing": lambda: rs256(claims(), alg=None),
    "alg not a text": lambda: rs256(claims(), alg=["RS256"]),
    "RS256 to HS256 with the public key": _confused,
    "HS256 with the name of an RS256 issuer": lambda: hs256(claims(), secret=OTHER_SECRET),
    "header says RS256, signed as HS256": lambda: hs256(claims(), alg="RS256", kid="one"),
    "RS512 by the right key": lambda: sign(claims(), pair("one").private, "RS512", kid="one"),
    "PS256 by the right key": lambda: sign(claims(), pair("one").private, "PS256", kid="one"),
    "wrong key under the right kid": lambda: signed_by(pair("evil"), claims(), kid="one"),
    "wrong secret": lambda: hs256(claims(iss=OTHER_ISSUER), secret="x" * 40),
    "empty secret": lambda: hs256(claims(iss=OTHER_ISSUER), secret=""),
    "one issuer's secret for the other's name": lambda: hs256(claims(iss=OTHER_ISSUER), secret=SECRET),
    "tampered payload": _tampered,
    "stripped signature": lambda: rs256(claims()).rpartition(".")[0] + ".",
    "stripped signature and dot": lambda: rs256(claims()).rpartition(".")[0],
    "another token's signature": lambda: (
        rs256(claims()).rpartition(".")[0] + "." + rs256(claims(sub="b")).split(".")[2]
    ),
    "signature cut short": lambda: rs256(claims())[:-4],
    # headers that would choose the key
    "embedded jwk": lambda: signed_by(pair("evil"), claims(), kid=None, jwk=pair("evil").public_jwk()),
    "jku of the attacker": lambda: signed_by(pair("evil"), claims(), kid="one", jku="https://evil.example/keys"),
    "x5u of the attacker": lambda: signed_by(pair("evil"), claims(), kid="one", x5u="https://evil.example/cert"),
    "kid unknown": lambda: rs256(claims(), kid="two"),
    "kid path traversal": lambda: signed_by(pair("evil"), claims(), kid="../evil.json"),
    "kid SQL injection": lambda: signed_by(pair("evil"), claims(), kid="x' UNION SELECT 'k' --"),
    "kid with NUL": lambda: signed_by(pair("evil"), claims(), kid="one\0"),
    "kid a number": lambda: rs256(claims(), kid=1),
    "kid a list": lambda: rs256(claims(), kid=["one"]),
    "kid endless": lambda: rs256(claims(), kid="k" * 300),
    "crit with an unknown extension": lambda: rs256(claims(), crit=["exp"], exp=1),
    "crit empty": lambda: rs256(claims(), crit=[]),
    "b64 false, payload detached": lambda: rs256(claims(), b64=False, crit=["b64"]),
    # iss, aud and the required claims
    "iss unknown": lambda: rs256(claims(iss="https://evil.example")),
    "iss of the other issuer": lambda: rs256(claims(iss=OTHER_ISSUER)),
    "iss in another case": lambda: rs256(claims(iss=ISSUER.upper())),
    "iss with a slash more": lambda: rs256(claims(iss=ISSUER + "/")),
    "iss a list": lambda: rs256(claims(iss=[ISSUER])),
    "iss missing": lambda: rs256(claims(iss=None)),
    "aud wrong": lambda: rs256(claims(aud="elsewhere")),
    "aud missing": lambda: rs256(claims(aud=None)),
    "aud empty": lambda: rs256(claims(aud=[])),
    "aud an object": lambda: rs256(claims(aud={AUDIENCE: True})),
    "aud a prefix": lambda: rs256(claims(aud=AUDIENCE + "x")),
    "exp missing": lambda: rs256(claims(exp=None)),
    "exp null": lambda: rs256(_raw_claims(exp="null")),
    "sub missing": lambda: rs256(claims(sub=None)),
    # times
    "exp a text": lambda: rs256(claims(exp=str(NOW + 60))),
    "exp true": lambda: rs256(claims(exp=True)),
    "exp NaN": lambda: rs256(_raw_claims(exp="NaN")),
    "exp Infinity": lambda: rs256(_raw_claims(exp="Infinity")),
    "exp 1e400": lambda: rs256(_raw_claims(exp="1e400")),
    "exp huge": lambda: rs256(claims(exp=10**30)),
    "exp of five thousand digits": lambda: rs256(_raw_claims(exp="9" * 5000)),
    "exp just beyond the bound": lambda: rs256(claims(exp=MAX_TIME + 1)),
    "exp negative": lambda: rs256(claims(exp=-1)),
    "exp a list": lambda: rs256(claims(exp=[NOW + 60])),
    "nbf in the future": lambda: rs256(claims(nbf=NOW + LEEWAY + 1)),
    "nbf a text": lambda: rs256(claims(nbf="0")),
    "nbf null": lambda: rs256(_raw_claims(nbf="null")),
    "iat in the future": lambda: rs256(claims(iat=NOW + LEEWAY + 1)),
    "iat true": lambda: rs256(claims(iat=True)),
    # who
    "sub empty": lambda: rs256(claims(sub="")),
    "sub a number": lambda: rs256(claims(sub=7)),
    "sub a space": lambda: rs256(claims(sub=" ")),
    "sub with a space after it": lambda: rs256(claims(sub="ann ")),
    "sub with a line break": lambda: rs256(claims(sub="ann\r\nSet-Cookie: a=b")),
    "sub with NUL": lambda: rs256(claims(sub="ann\0")),
    "sub written right to left": lambda: rs256(claims(sub="\u202ennaa")),
    "sub with a zero-width space": lambda: rs256(claims(sub="an\u200bn")),
    "sub with half a surrogate pair": lambda: rs256(claims(sub="\ud800")),
    "sub too long": lambda: rs256(claims(sub="x" * (MAX_USER + 1))),
    "tenant with a slash": lambda: rs256(claims(tenant="acme/other")),
    "tenant with a colon": lambda: rs256(claims(tenant="acme:room")),
    "tenant with a line break at its end": lambda: rs256(claims(tenant="acme\n")),
    "tenant empty": lambda: rs256(claims(tenant="")),
    "tenant null": lambda: rs256(_raw_claims(tenant="null")),
    "tenant a list": lambda: rs256(claims(tenant=["acme"])),
    "tenant too long": lambda: rs256(claims(tenant="t" * 65)),
    # what they may
    "grants a text": lambda: rs256(claims(grants="**")),
    "grants an object": lambda: rs256(claims(grants={"**": True})),
    "grants true": lambda: rs256(claims(grants=True)),
    "grants of numbers": lambda: rs256(claims(grants=[1])),
    "grants nested": lambda: rs256(claims(grants=[["**"]])),
    "grants with ** in the middle": lambda: rs256(claims(grants=["a:**:b"])),
    "grants with a line break": lambda: rs256(claims(grants=["room:*\n"])),
    "grants with an unknown right": lambda: rs256(claims(grants=[{"channel": "a", "rights": ["admin"]}])),
    "grants with a field more": lambda: rs256(claims(grants=[{"channel": "a", "rights": [], "tenant": "b"}])),
    "grants with rights as keys": lambda: rs256(claims(grants=[{"channel": "a", "rights": {"publish": False}}])),
    "info a text": lambda: rs256(claims(info="x")),
    "info too large": lambda: rs256(claims(info={"n": "x" * MAX_INFO})),
    "info with NaN": lambda: rs256(_raw_claims(info='{"n": NaN}')),
    "info with half a surrogate pair": lambda: rs256(claims(info={"n": "\udfff"})),
    # not tokens
    "empty": lambda: "",
    "a word": lambda: "token",
    "oversized": _oversized,
    "four segments": lambda: rs256(claims()) + ".c2ln",
    "five segments, as a JWE": lambda: rs256(claims()) + ".c2ln.c2ln",
    "duplicated segments": lambda: ".".join(rs256(claims()).split(".") * 2),
    "line break after it": lambda: rs256(claims()) + "\n",
    "spaces around it": lambda: f" {rs256(claims())} ",
    "padding": lambda: rs256(claims()) + "==",
    "letters that look like ASCII": lambda: rs256(claims()).replace("e", "е"),
    "half a surrogate pair": lambda: rs256(claims()) + "\ud800",
    "header not JSON": lambda: f"e30x.{segment(claims())}.c2ln",
    "header a list": lambda: f"{segment(b'[]')}.{segment(claims())}.c2ln",
    "header not UTF-8": lambda: f"{segment(bytes([0xFF, 0xFE]))}.{segment(claims())}.c2ln",
    "payload a list": lambda: rs256(b"[]"),
    "payload not JSON": lambda: rs256(b"{"),
    "payload not UTF-8": lambda: rs256(b'{"iss": "\xff"}'),
    "payload nested endlessly": lambda: rs256(_deep()),
}


@pytest.mark.parametrize("attack", INVALID)
async def test_forged_token_is_refused_as_invalid(authenticator: Authenticator, attack: str) -> None:
    token = INVALID[attack]()
    with pytest.raises(ServiceError) as refused:
        await authenticator.authenticate(token)
    assert refused.value.code is ErrorCode.INVALID_TOKEN
    _assert_silent(refused.value, token)


EXPIRED: dict[str, Callable[[], str]] = {
    "at the end of the leeway": lambda: rs256(claims(exp=NOW - LEEWAY)),
    "one second after the leeway": lambda: rs256(claims(exp=NOW - LEEWAY - 1)),
    "a float": lambda: rs256(claims(exp=NOW - LEEWAY - 0.5)),
    "in 1970": lambda: rs256(claims(exp=0)),
    "of the other issuer": lambda: hs256(claims(iss=OTHER_ISSUER, exp=NOW - 60), secret=OTHER_SECRET),
}


@pytest.mark.parametrize("case", EXPIRED)
async def test_expired_token_is_refused_as_expired(authenticator: Authenticator, case: str) -> None:
    token = EXPIRED[case]()
    with pytest.raises(ServiceError) as refused:
        await authenticator.authenticate(token)
    assert refused.value.code is ErrorCode.TOKEN_EXPIRED
    _assert_silent(refused.value, token)


async def test_forged_expired_token_is_refused_as_invalid(authenticator: Authenticator) -> None:
    # A client would otherwise ask for a new one again and again; and the answer would confirm a guess.
    for token in (
        signed_by(pair("evil"), claims(exp=NOW - 60), kid="one"),
        rs256(claims(exp=NOW - 60, aud="elsewhere")),
    ):
        with pytest.raises(ServiceError) as refused:
            await authenticator.authenticate(token)
        assert refused.value.code is ErrorCode.INVALID_TOKEN


def _assert_silent(error: ServiceError, token: str) -> None:
    said = f"{error} {error.details}"
    assert OTHER_SECRET not in said
    for part in token.split("."):
        assert len(part) < 8 or part not in said


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, "HS256 needs secret"),
        ({"secret": "short"}, "shorter than 32 bytes"),
        ({"secret": SECRET, "jwks_file": Path("keys.json")}, "HS256 needs secret"),
        ({"jwks_url": "https://id.example.com/keys"}, "HS256 needs secret"),
        ({"algorithm": "RS256"}, "RS256 needs jwks_file or jwks_url"),
        ({"algorithm": "RS256", "secret": SECRET}, "RS256 needs jwks_file or jwks_url"),
        (
            {"algorithm": "ES256", "jwks_file": Path("k"), "jwks_url": "https://a/k"},
            "ES256 needs jwks_file or jwks_url",
        ),
        ({"algorithm": "RS256", "jwks_url": "http://id.example.com/keys"}, "not an https:// address"),
        ({"algorithm": "RS256", "jwks_url": "http://127.0.0.1/keys"}, "not an https:// address"),
        ({"algorithm": "RS256", "jwks_url": "https:///keys"}, "not an https:// address"),
        ({"algorithm": "RS256", "jwks_url": "https://[::1/keys"}, "not an https:// address"),
        ({"algorithm": "RS256", "jwks_url": "https://me:word@id.example.com/"}, "not an https:// address"),
        ({"algorithm": "RS256", "jwks_url": "file:///etc/keys"}, "not an https:// address"),
        ({"algorithm": "none", "secret": SECRET}, "algorithm is one of HS256, RS256, ES256, EdDSA"),
        ({"secret": SECRET, "default_tenant": "a/b"}, "default_tenant"),
        ({"secret": SECRET, "leeway": -1}, "leeway"),
        ({"secret": SECRET, "leeway": float("nan")}, "leeway"),
        ({"secret": SECRET, "audience": ""}, "issuer and audience are needed"),
    ],
)
def test_issuer_with_faulty_settings_is_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as refused:
        Issuer(**{"issuer": ISSUER, "audience": AUDIENCE, "algorithm": "HS256", **given})
    assert ISSUER in str(refused.value)
    assert SECRET not in str(refused.value)


def test_issuer_repr_hides_secret() -> None:
    assert SECRET not in repr(Issuer(ISSUER, AUDIENCE, "HS256", secret=SECRET))


def test_authenticator_two_issuers_of_one_name_are_refused() -> None:
    issuer = Issuer(ISSUER, AUDIENCE, "HS256", secret=SECRET)
    with pytest.raises(ValueError, match="stands twice"):
        JwtAuthenticator([issuer, issuer], FakeClock(), no_fetch)
