"""An issuer of tokens for tests: real keys of all four algorithms, and tokens put together by hand so that they can be wrong."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from jwt.algorithms import get_default_algorithms

from service.adapters.jwt.keys import Algorithm
from tests.support.clock import START

ISSUER = "https://id.example.com"
AUDIENCE = "tidewire"
SECRET = "a shared secret of more than thirty-two bytes"

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey


@dataclass(frozen=True)
class KeyPair:
    """A private key with its algorithm and its id."""

    kid: str
    algorithm: Algorithm
    private: PrivateKey

    def public_jwk(self, **changes: Any) -> dict[str, Any]:
        """The public half as it stands in a JWKS; None removes a member."""
        jwk = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        jwk = {name: value for name, value in jwk.items() if name != "key_ops"}
        return _changed({**jwk, "kid": self.kid, "use": "sig", "alg": self.algorithm}, changes)

    def private_jwk(self) -> dict[str, Any]:
        """Both halves."""
        jwk: dict[str, Any] = get_default_algorithms()[self.algorithm].to_jwk(self.private, as_dict=True)
        return {name: value for name, value in jwk.items() if name != "key_ops"} | {"kid": self.kid}


@cache
def pair(kid: str, algorithm: Algorithm = "RS256", bits: int = 2048) -> KeyPair:
    """The key pair of this name; the same one for all tests."""
    if algorithm == "RS256":
        return KeyPair(kid, algorithm, generate_rsa(65537, bits))
    if algorithm == "ES256":
        return KeyPair(kid, algorithm, generate_ec(SECP256R1()))
    return KeyPair(kid, algorithm, Ed25519PrivateKey.generate())


def jwks(*keys: KeyPair | dict[str, Any]) -> bytes:
    """A JWKS document of these keys."""
    return json.dumps({"keys": [key.public_jwk() if isinstance(key, KeyPair) else key for key in keys]}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token, changed; None removes a claim."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": int(START) + 3600, "iat": int(START)}
    return _changed(good, changes)


def hs256(payload: dict[str, Any] | bytes, secret: str = SECRET, **header: Any) -> str:
    """A token signed with a shared secret."""
    return sign(payload, secret, "HS256", **header)


def signed_by(key: KeyPair, payload: dict[str, Any] | bytes, **header: Any) -> str:
    """A token signed by a key pair, with its kid."""
    return sign(payload, key.private, key.algorithm, **{"kid": key.kid, **header})


def sign(payload: dict[str, Any] | bytes, key: Any, algorithm: str, **header: Any) -> str:
    """Header, payload and a signature made by `algorithm`, whatever the header (None removes a member) says about it."""
    head = _changed({"alg": algorithm, "typ": "JWT"}, header)
    signing_input = f"{segment(head)}.{segment(payload)}"
    method = get_default_algorithms()[algorithm]
    prepared = key.encode() if algorithm == "HS256" else key  # prepare_key would refuse what an attacker does
    return f"{signing_input}.{_base64(method.sign(signing_input.encode(), prepared))}"


def segment(content: dict[str, Any] | bytes) -> str:
    """One segment of a token."""
    return _base64(content if isinstance(content, bytes) else json.dumps(content).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _changed(good: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**good, **changes}.items() if value is not None}
