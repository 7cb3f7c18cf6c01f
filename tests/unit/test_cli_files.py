"""`tidewire check`: every file that settings name is there, can be read, and is what it is to be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from service.__main__ import main
from service.settings.load import read_failure
from tests.stores.certificates import Certificates
from tests.support.backend import SECRET as WHSEC
from tests.support.harness import API_KEY, CONTRACT, SECRET


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are good."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TIDEWIRE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TIDEWIRE_AUTH__SECRET", SECRET)
    monkeypatch.setenv("TIDEWIRE_CONTRACT", str(CONTRACT))


@pytest.fixture
def faults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What `check` tells of these settings; `serve` tells the same."""

    def told(**settings: object) -> list[str]:
        for name, value in settings.items():
            monkeypatch.setenv(f"TIDEWIRE_{name}", str(value))
        status = main(["check"])
        lines = capsys.readouterr().err.splitlines()
        assert status == (1 if lines else 0)
        if lines:
            assert main(["serve"]) == 1
            assert capsys.readouterr().err.splitlines() == lines
        return lines

    return told


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    monkeypatch.setenv("TIDEWIRE_BROKER__URL", "rediss://127.0.0.1:1")
    return Certificates(tmp_path)


def test_good_certificates_have_no_faults(faults: Callable[..., list[str]], tls: Certificates) -> None:
    whole = tls.ca.with_name("whole.pem")
    whole.write_bytes(tls.client_certificate.read_bytes() + tls.client_key.read_bytes())
    assert faults(BROKER__CA=tls.ca, BROKER__CERTIFICATE=whole) == []
    assert faults(BROKER__CERTIFICATE=tls.client_certificate, BROKER__PRIVATE_KEY=tls.client_key) == []


def test_missing_files_are_reported_with_their_settings(
    faults: Callable[..., list[str]], tls: Certificates, tmp_path: Path
) -> None:
    assert faults(
        BROKER__CA="/nowhere/ca.pem", BROKER__CERTIFICATE="/nowhere/tls.crt", BROKER__PRIVATE_KEY=tmp_path
    ) == [
        "/nowhere/ca.pem: cannot be read: No such file or directory (broker.ca)",
        "/nowhere/tls.crt: cannot be read: No such file or directory (broker.certificate)",
        f"{tmp_path}: cannot be read: Is a directory (broker.private_key)",
    ]


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xef\xbb\xbf", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("name", ["ca", "certificate"])
def test_file_without_certificate_is_reported(
    name: str, content: bytes, faults: Callable[..., list[str]], tls: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "bad.pem"
    file.write_bytes(content)
    assert faults(**{f"BROKER__{name.upper()}": file}) == [
        f"{file}: holds no certificate in PEM format (broker.{name})"
    ]


def test_key_of_another_certificate_is_reported(faults: Callable[..., list[str]], tls: Certificates) -> None:
    assert faults(BROKER__CERTIFICATE=tls.client_certificate, BROKER__PRIVATE_KEY=tls.key) == [
        f"{tls.key}: is not the key of broker.certificate (broker.private_key)"
    ]


def test_certificate_without_key_is_reported(faults: Callable[..., list[str]], tls: Certificates) -> None:
    assert faults(BROKER__CERTIFICATE=tls.client_certificate) == [
        f"{tls.client_certificate}: holds no private key beside it: set broker.private_key (broker.certificate)"
    ]
    assert faults(BROKER__CERTIFICATE=tls.client_certificate, BROKER__PRIVATE_KEY=tls.ca) == [
        f"{tls.ca}: holds no private key in PEM format (broker.private_key)"
    ]


def test_encrypted_key_is_reported_without_a_prompt(
    faults: Callable[..., list[str]], tls: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "encrypted.key"
    key = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    assert faults(BROKER__CERTIFICATE=tls.client_certificate, BROKER__PRIVATE_KEY=file) == [
        f"{file}: is encrypted, and the service has no password for it (broker.private_key)"
    ]


def test_key_set_fault_names_its_setting(faults: Callable[..., list[str]], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("auth: {issuers: [{issuer: i, audience: a, algorithm: ES256, jwks_file: keys.json}]}\n")
    assert faults(CONFIG=config) == [
        f"{tmp_path / 'keys.json'}: the keys of i cannot be read: No such file or directory (auth.issuers[0].jwks_file)"
    ]


def test_unreadable_file_is_reported_with_the_user() -> None:
    error = PermissionError(13, "Permission denied", "secret")
    assert read_failure(error) == f"Permission denied for user {os.geteuid()}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf" + SECRET.encode(), "begins with a byte order mark: save it as UTF-8 without one"),
        (SECRET.encode("utf-16"), "is not UTF-8 text"),
        (SECRET.encode() + b"\r\n", None),
    ],
)
@pytest.mark.parametrize("setting", ["AUTH__SECRET", "API__KEY", "BROKER__PASSWORD", "BROKER__SENTINEL_PASSWORD"])
def test_unusable_secret_file_is_reported(
    setting: str,
    content: bytes,
    reason: str | None,
    faults: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content.replace(SECRET.encode(), API_KEY.encode()))
    monkeypatch.delenv(f"TIDEWIRE_{setting}", raising=False)
    if setting == "BROKER__SENTINEL_PASSWORD":
        monkeypatch.setenv("TIDEWIRE_BROKER__URL", "redis+sentinel://127.0.0.1:1/master")
    told = faults(**{f"{setting}_FILE": file})
    if reason is None:
        assert [line for line in told if str(file) in line] == []
    else:
        assert f"TIDEWIRE_{setting}_FILE: {file} {reason}" in told


ENDPOINT = {"name": "moderation", "url": "https://a.test", "tenants": ["default"], "secrets": [WHSEC]}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"url": "http://a.test:3000/x?y=1"}, None),
        ({"url": "ftp://a.test"}, "is not an http:// or https:// address"),
        ({"url": "https://user@a.test"}, "is not an http:// or https:// address"),
        ({"tenants": []}, "tenants is empty"),
        ({"tenants": ["a b"]}, "pattern"),
        ({"secrets": []}, "needs secrets or secrets_file, and only one of them"),
        ({"secrets": ["secret"]}, "does not begin with whsec_"),
        ({"secrets": ["whsec_c2hvcnQ="]}, "has 5 bytes behind whsec_, not 24 to 64"),
        ({"secrets": ["whsec_?"]}, "is not base64 behind whsec_"),
        (
            {"secrets": [], "secrets_file": "absent"},
            "cannot be read: No such file or directory (hooks.endpoints[0].secrets_file)",
        ),
        ({"secrets": [], "secrets_file": "empty"}, "has 0 secrets, one a line, not 1 to 8"),
        ({"secrets": [], "secrets_file": "secrets"}, None),
        ({"timeout": 6}, "5"),
        ({"ca": "empty"}, "holds no certificate in PEM format (hooks.endpoints[0].ca)"),
        ({"ca": "empty", "url": "http://a.test"}, "is for TLS, which url does not use"),
    ],
)
def test_faults_of_an_endpoint_are_reported(
    faults: Callable[..., list[str]], tmp_path: Path, more: dict[str, object], reason: str | None
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "secrets").write_text(f"{WHSEC}\n\n{WHSEC}\n")
    found = faults(HOOKS__ENDPOINTS=json.dumps([{**ENDPOINT, **more}]))
    if reason is None:
        assert found == []
    else:
        assert any(reason in line for line in found), found
        assert not any("c2h" in line for line in found), "no secret is shown"


def test_endpoints_and_the_contract_have_to_fit(faults: Callable[..., list[str]], tmp_path: Path) -> None:
    contract = tmp_path / "hooks.yaml"
    contract.write_text(
        "channels:\n  a:\n    subscribe: everyone\n    events:\n      a.b:\n        publish: authenticated\n"
        "        delivery: ephemeral\n        hook: {endpoint: elsewhere}\n"
    )
    endpoints = json.dumps([ENDPOINT, {**ENDPOINT, "tenants": ["other", "default"]}])
    assert faults(CONTRACT=contract, HOOKS__ENDPOINTS=endpoints) == [
        f"{contract}:8: the settings have no endpoint 'elsewhere' in hooks.endpoints",
        "TIDEWIRE_HOOKS__ENDPOINTS: an endpoint 'moderation' for the tenant 'default' comes before this one",
    ]
    assert faults(CONTRACT=contract, HOOKS__ENDPOINTS=json.dumps([ENDPOINT])) == [
        f"{contract}:8: the settings have no endpoint 'elsewhere' in hooks.endpoints"
    ]
    assert main(["check", str(contract)]) == 0, "a contract can be checked alone"
