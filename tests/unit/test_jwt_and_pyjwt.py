"""Tokens changed in thousands of ways: what we accept, PyJWT accepts, too, with the same claims."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.adapters.jwt.authenticator import JwtAuthenticator
from service.adapters.jwt.claims import MAX_TIME
from service.adapters.jwt.issuer import Issuer
from service.adapters.jwt.keys import Algorithm
from service.core.identity import Identity, parse_grants
from service.errors import ErrorCode, ServiceError
from tests.support.clock import START, FakeClock
from tests.support.examples import examples
from tests.unit.jwt_issuer import AUDIENCE, ISSUER, SECRET, claims, hs256, jwks, pair, segment, sign, signed_by

NOW = int(START)
LEEWAY = 5.0
OPTIONS: Any = {
    "require": ["exp", "aud", "iss", "sub"],
    "verify_exp": False,  # it would ask the operating system for the time
    "verify_nbf": False,
    "verify_iat": False,
    "enforce_minimum_key_length": True,
}
thorough = settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Both:
    """Our authenticator and PyJWT, with the same key."""

    def __init__(self, issuer: Issuer, key: Any) -> None:
        self._issuer = issuer
        self._key = key
        self.ours = JwtAuthenticator([issuer], FakeClock(), _no_fetch, max_cached_signatures=8)

    def read(self, token: str) -> Identity | None:
        """Returns our identity; None if we refuse the token."""
        try:
            return _now(self.ours.authenticate(token))
        except ServiceError as error:
            refused = error.code
        assert refused in (ErrorCode.INVALID_TOKEN, ErrorCode.TOKEN_EXPIRED)
        return None

    def read_by_pyjwt(self, token: str) -> Mapping[str, Any] | None:
        """Returns PyJWT's claims; None if it refuses the token."""
        algorithm = self._issuer.algorithm
        try:
            found: Mapping[str, Any] = jwt.decode(
                token, self._key, algorithms=[algorithm], audience=AUDIENCE, issuer=ISSUER, options=OPTIONS
            )
        except (jwt.PyJWTError, ValueError):
            return None
        return found

    def agree(self, token: str) -> bool:
        """Compares both, twice: the second time with a cached signature. Returns whether we accept the token."""
        accepted = [self.read(token), self.read(token)]
        assert accepted[0] == accepted[1]
        if accepted[0] is None:
            return False
        theirs = self.read_by_pyjwt(token)
        assert theirs is not None, f"only we accept {token}"
        _check_same(accepted[0], theirs)
        return True


def _check_same(identity: Identity, theirs: Mapping[str, Any]) -> None:
    for claim in ("exp", "nbf", "iat"):
        if claim in theirs:
            assert type(theirs[claim]) in (int, float)
            assert 0 <= theirs[claim] <= MAX_TIME
    assert theirs["exp"] > NOW - LEEWAY
    assert theirs.get("nbf", 0) <= NOW + LEEWAY
    assert theirs.get("iat", 0) <= NOW + LEEWAY
    info = theirs.get("info")
    assert identity == Identity(
        tenant=theirs.get("tenant", "default"),
        user=theirs["sub"],
        grants=parse_grants(theirs.get("grants")),
        expires_at=theirs["exp"],
        issued_at=theirs.get("iat"),
        token_id=theirs.get("jti"),
        info=None if info is None else json.dumps(info, ensure_ascii=False, separators=(",", ":")).encode(),
    )


def _now(coroutine: Coroutine[Any, Any, Identity]) -> Identity:
    """Returns the result of a coroutine that never waits, as keys are in a file or in the settings."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(Identity, done.value)
    raise AssertionError("it waits for something")


async def _no_fetch(url: str) -> bytes:
    raise AssertionError(url)


SHARED = Both(Issuer(ISSUER, AUDIENCE, "HS256", secret=SECRET, leeway=LEEWAY), SECRET)


@pytest.fixture(scope="module", params=["RS256", "ES256", "EdDSA"])
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Algorithm, Both]:
    algorithm: Algorithm = request.param
    file: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_bytes(jwks(pair("one", algorithm)))
    issuer = Issuer(ISSUER, AUDIENCE, algorithm, jwks_file=file, leeway=LEEWAY)
    return algorithm, Both(issuer, jwt.PyJWK(pair("one", algorithm).public_jwk(), algorithm))


# --- whole tokens -----------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
patterns = st.sampled_from(["room:*", "log:**", "inbox:ann", "**", "a:b*c:d"])
rights = st.lists(st.sampled_from(["subscribe", "publish", "history", "presence"]), max_size=4)
good_claims = st.fixed_dictionaries(
    {
        "iss": st.just(ISSUER),
        "aud": st.just(AUDIENCE) | st.lists(text, max_size=2).map(lambda others: [*others, AUDIENCE]),
        "sub": st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30),
        "exp": st.integers(NOW, MAX_TIME) | st.floats(NOW, MAX_TIME),
    },
    optional={
        "nbf": st.integers(0, NOW) | st.floats(0, NOW),
        "iat": st.integers(0, NOW) | st.floats(0, NOW),
        "jti": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
        "tenant": st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
        "grants": st.lists(patterns | st.fixed_dictionaries({"channel": patterns, "rights": rights}), max_size=20),
        "info": st.dictionaries(text, json_value, max_size=3),
        "else": json_value,
    },
)


@thorough
@given(payload=good_claims, ascii_only=st.booleans(), kid=st.none() | text)
def test_valid_token_is_accepted_by_both(payload: dict[str, Any], ascii_only: bool, kid: str | None) -> None:
    written = json.dumps(payload, ensure_ascii=ascii_only).encode()
    assert SHARED.agree(hs256(written, kid=kid))


# --- spoilt before they are signed ------------------------------------------------------------------------------------

_ODD_VALUES = """
    null true false 0 -0 -1 1 1.0 1.5 1e9 1E+2 1e400 -1e400 NaN Infinity -Infinity 01 1. .5 0x10 1_0 +1 {} [] "" " " "\\u0000"
    "\\ud800" "\\udc00\\ud800" "\\ud83d\\ude00" "\\x41" 'a' [[]] [1,] {"a":1,} {"a":1,"a":2} 18446744073709551616
    99999999999999999999999999 253402300799 253402300800 1795374000 1795373994 1795374006 "1795374000" "tidewire" ["tidewire"]
    ["tidewire",1] ["x"] {"tidewire":1} "https://id.example.com" "\\u0068ttps://id.example.com" ["https://id.example.com"] "ann"
    "ann\\n" "\\u202eann" ["room:*"] ["room:*",7] [true] [1] [1.0] [["room:*"]] [{"channel":"a","rights":["publish"]}]
    [{"channel":"a","rights":[],"channel":"b"}] {"n":NaN} {"n":"\\ud800"} {"n":1e400}
    {"n":123456789012345678901234567890}
"""
odd_value = st.sampled_from(_ODD_VALUES.split()) | st.text(max_size=6).map(json.dumps)
claim_name = st.sampled_from(
    [
        "iss",
        "aud",
        "sub",
        "exp",
        "nbf",
        "iat",
        "jti",
        "tenant",
        "grants",
        "info",
        "else",
        "\\u0065xp",
        "exp ",
        "EXP",
        "",
    ]
)
space = st.sampled_from(["", "", "", " ", "\n", "\t\r", "\x0c", "\u00a0", "\0", "//", "/**/", ","])
members = st.lists(st.tuples(claim_name, odd_value, space), max_size=4)
encoding = st.sampled_from(
    ["utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]
)


def _object(good: Mapping[str, Any], more: list[tuple[str, str, str]], at: int) -> str:
    """Returns an object of the valid members and others among them, perhaps of the same names."""
    parts = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in good.items()]
    at %= len(parts) + 1
    parts[at:at] = [f'{blank}"{name}"{blank}:{value}' for name, value, blank in more]
    return "{" + ",".join(parts) + "}"


def _encoded(written: str, encoding: str) -> bytes:
    return written.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")


spliced = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.binary(max_size=3)), max_size=2)


def _spliced(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, new in changes:
        at %= len(data) + 1  # anywhere, whatever the length
        data = data[:at] + new + data[at + gone :]
    return data


@thorough
@given(more=members, at=st.integers(0, 10), blank=space, encoding=encoding, changes=spliced)
def test_token_with_odd_claims_is_read_as_by_pyjwt(
    more: list[tuple[str, str, str]], at: int, blank: str, encoding: str, changes: list[tuple[int, int, bytes]]
) -> None:
    written = blank + _object(claims(), more, at) + blank
    SHARED.agree(hs256(_spliced(_encoded(written, encoding), changes)))


_LAST = len(claims())


@pytest.mark.parametrize(
    ("at", "more"),
    [
        (_LAST, '"sub":"bob"'),
        (0, '"sub":7,"exp":null'),
        (_LAST, '"\\u0073ub":"bob"'),
        (_LAST, ' "exp" :\t1795374060.5\n'),
        (_LAST, '"exp":1.8E+9'),
        (_LAST, '"else":{"sub":"bob","a":1,"a":2}'),
        (_LAST, '"info":{"a":1,"b":[1e22,-0,123456789012345678901234567890],"a":{}}'),
        (_LAST, '"grants":[{"rights":["admin"],"channel":"b","rights":["publish"]}]'),
        (_LAST, '"sub":"\\ud83d\\ude00"'),
    ],
)
def test_token_with_odd_but_valid_claims_is_accepted(at: int, more: str) -> None:
    parts = json.dumps(claims(), separators=(",", ":"))[1:-1].split(",")
    parts[at:at] = [more]
    assert SHARED.agree(hs256(("{" + ",".join(parts) + "}").encode()))


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps(claims(**{"else": float("nan")})).encode(),
        json.dumps(claims(**{"else": "\ud800"})).encode(),
        json.dumps(claims(**{"else": 0})).encode().replace(b": 0", b": 1e400"),
        json.dumps(claims()).encode("utf-8-sig"),
        json.dumps(claims()).encode("utf-16-le"),
        json.dumps(claims(**{"else": "\ud800"}), ensure_ascii=False).encode("utf-8", "surrogatepass"),
    ],
)
def test_token_payload_that_is_not_json_is_refused(payload: bytes) -> None:
    # RFC 8259 §6, §8.1, §8.2: other readers of the same token would see something else in it, or nothing.
    token = hs256(payload)
    assert SHARED.read_by_pyjwt(token) is not None
    assert not SHARED.agree(token)


header_name = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jku", "cty", "\\u0061lg", "ALG", "zip"])
_ODD_HEADERS = """
    null true false 0 "" "HS256" "hs256" "none" "RS256" "HS\\u0032256" "HS512" ["HS256"] {} [] ["b64"] ["exp"] "one"
    "\\ud800" "\\u0000" NaN 1e400 01 {"a":1,}
"""
header_value = st.sampled_from(_ODD_HEADERS.split())


@thorough
@given(
    more=st.lists(st.tuples(header_name, header_value, space), max_size=3),
    at=st.integers(0, 3),
    encoding=encoding,
    changes=spliced,
)
def test_token_with_odd_header_is_read_as_by_pyjwt(
    more: list[tuple[str, str, str]], at: int, encoding: str, changes: list[tuple[int, int, bytes]]
) -> None:
    head = _spliced(_encoded(_object({"alg": "HS256", "typ": "JWT"}, more, at), encoding), changes)
    SHARED.agree(_with_header(head, claims()))


def _with_header(head: bytes, payload: dict[str, Any]) -> str:
    """Returns a token with these bytes as header, validly signed."""
    signed = f"{segment(head)}.{segment(payload)}"
    signature = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), SECRET.encode())
    return f"{signed}.{segment(signature)}"


# --- spoilt afterwards ------------------------------------------------------------------------------------------------

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
characters = st.sampled_from([*ALPHABET, *".=+/ \n\0\u0430\ud800"])
changes_of_text = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 2), st.text(characters, max_size=2)), min_size=1, max_size=2
)


def _changed(token: str, changes: list[tuple[int, int, str]]) -> str:
    for at, gone, new in changes:
        at %= len(token) + 1  # as above
        token = token[:at] + new + token[at + gone :]
    return token


@thorough
@given(changes=changes_of_text)
def test_token_with_changed_characters_is_read_as_by_pyjwt(changes: list[tuple[int, int, str]]) -> None:
    token = hs256(claims())
    changed = _changed(token, changes)
    assert SHARED.agree(changed) is (changed == token)


@settings(thorough, max_examples=examples(100))
@given(changes=changes_of_text, at_end=st.booleans())
def test_token_with_changed_characters_and_public_key_is_read_as_by_pyjwt(
    public: tuple[Algorithm, Both], changes: list[tuple[int, int, str]], at_end: bool
) -> None:
    algorithm, both = public
    token = signed_by(pair("one", algorithm), claims())
    assert both.agree(token)
    changed = _changed(token, [(len(token) - at % 3 if at_end else at, gone, new) for at, gone, new in changes])
    assert both.agree(changed) is (changed == token)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("spaces", [0, 1, 2])
def test_token_in_another_spelling_is_refused(part: int, spaces: int) -> None:
    # Bits behind the last byte of a segment say nothing; if they could be anything, so could the token's text.
    token = hs256(json.dumps(claims()).encode() + b" " * spaces, x="y" * spaces)
    parts = token.split(".")
    for last in ALPHABET:
        other = [*parts]
        other[part] = parts[part][:-1] + last
        assert SHARED.agree(".".join(other)) is (other == parts)


@pytest.mark.parametrize("junk", ["!!!!", "====", "    ", "\n\n\n\n", "++++", "////", "\0\0\0\0"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_token_with_inserted_characters_is_refused(part: int, junk: str) -> None:
    # Four characters at a time: decoders that skip what they do not know see the same length modulo 4.
    for at in (0, 4, None):
        parts = hs256(claims()).split(".")
        parts[part] = parts[part][:at] + junk + parts[part][len(parts[part]) if at is None else at :]
        assert not SHARED.agree(".".join(parts))


@pytest.mark.parametrize("head", [b'{"alg":"HS256","kid":null}', b'{"alg":"HS256","kid":"a","kid":null}'])
def test_token_with_null_kid_is_refused(head: bytes) -> None:
    assert not SHARED.agree(_with_header(head, claims()))


@pytest.mark.parametrize("audience", [[AUDIENCE, 1], [None, AUDIENCE], [[AUDIENCE]], [AUDIENCE, []]])
def test_token_with_audience_that_is_no_text_is_refused(audience: Any) -> None:
    assert not SHARED.agree(hs256(claims(aud=audience)))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512", "none"])
def test_token_of_another_algorithm_with_same_secret_is_refused(algorithm: str) -> None:
    secret = b"" if algorithm == "none" else SECRET.encode()
    assert not SHARED.agree(sign(claims(), secret, algorithm, alg="HS256"))
    assert not SHARED.agree(sign(claims(), secret, algorithm))
