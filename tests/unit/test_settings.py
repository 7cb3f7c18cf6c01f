"""Settings: where they come from, which source wins, and that every fault is told where it stands, without its secret."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import ValidationError

from service.core.limits import Compression, Limits, Rate
from service.settings import Settings, SettingsFaults, load_settings

SECRET = "a secret of at least thirty-two bytes, all of it toy"
KEY = "a-toy-api-key-of-24-characters"
ENOUGH = {"TIDEWIRE_AUTH__SECRET": SECRET, "TIDEWIRE_CONTRACT": "contract.yaml"}


def load(environ: dict[str, str] | None = None, file: str | None = None, tmp_path: Path | None = None) -> Settings:
    path = None
    if file is not None:
        assert tmp_path is not None
        path = tmp_path / "settings.yaml"
        path.write_text(dedent(file))
    return load_settings(path, ENOUGH | (environ or {}))


def faults(
    environ: dict[str, str], file: str | None = None, tmp_path: Path | None = None
) -> list[tuple[str, int | None, str]]:
    with pytest.raises(SettingsFaults) as caught:
        load(environ, file, tmp_path)
    assert SECRET not in str(caught.value)
    told = [(Path(fault.file).name, fault.line, fault.reason) for fault in caught.value.faults]
    return sorted(told, key=lambda fault: fault[:1])  # by file; the lines are in order already


def test_defaults_are_safe() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.ops_host, settings.ops_port) == (
        "127.0.0.1",
        8080,
        "127.0.0.1",
        9090,
    )
    assert settings.contract == Path("contract.yaml")
    assert (settings.origins, settings.demo, settings.auth.anonymous, settings.auth.cookie) == ((), False, False, None)
    assert settings.proxy.hops == 0
    assert settings.all_api_keys() == ()
    assert settings.limits == Limits()
    assert not settings.compression.enabled


def test_settings_are_frozen() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.port = 1
    with pytest.raises(ValidationError):
        settings.auth.anonymous = True


def test_settings_ignore_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("TIDEWIRE_PORT", "1")
    assert Settings().port == 8080
    assert load().port == 8080


def test_environment_overrides_file(tmp_path: Path) -> None:
    settings = load(
        {"TIDEWIRE_PORT": "1234", "TIDEWIRE_LIMITS__BATCH": "7", "TIDEWIRE_LIMITS__USER_RATE__BURST": "9"},
        """
        port: 1
        host: 0.0.0.0
        limits:
          batch: 1
          subscriptions: 3
          ip_rate: {burst: 5}
          user_rate: {per_second: 4, burst: 4}
        log: {level: debug}
        """,
        tmp_path,
    )
    assert (settings.port, settings.host, settings.log.level) == (1234, "0.0.0.0", "debug")
    assert (settings.limits.batch, settings.limits.subscriptions) == (7, 3)
    assert settings.limits.user_rate == Rate(per_second=4, burst=9)
    assert settings.limits.ip_rate == Rate(per_second=Limits().ip_rate.per_second, burst=5)


def test_compression_is_set_by_file_or_environment(tmp_path: Path) -> None:
    environ = {"TIDEWIRE_COMPRESSION__ENABLED": "true", "TIDEWIRE_COMPRESSION__LEVEL": "9"}
    found = load(environ, "compression: {min_bytes: 0, level: 1}", tmp_path).compression
    assert found == Compression(enabled=True, min_bytes=0, level=9)


def test_paths_in_file_are_relative_to_it(tmp_path: Path) -> None:
    environ = {"TIDEWIRE_AUTH__SECRET": SECRET}
    path = tmp_path / "settings.yaml"
    path.write_text(
        "contract: c.yaml\nauth: {issuers: [{issuer: i, audience: a, algorithm: ES256, jwks_file: keys/j.json}]}\n"
        "broker: {url: 'rediss://h', ca: tls/ca.pem, certificate: tls/c.pem, private_key: /etc/k.pem}\n"
    )
    settings = load_settings(path, environ)
    assert settings.contract == tmp_path / "c.yaml"
    assert settings.auth.issuers[0].jwks_file == tmp_path / "keys/j.json"
    broker = settings.broker
    assert (broker.ca, broker.certificate) == (tmp_path / "tls/ca.pem", tmp_path / "tls/c.pem")
    assert broker.private_key == Path("/etc/k.pem")
    assert load_settings(path, environ | {"TIDEWIRE_CONTRACT": "here.yaml"}).contract == Path("here.yaml")


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://a.example", ("https://a.example",)),
        ("https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ('["https://a.example", "http://[::1]:8080"]', ("https://a.example", "http://[::1]:8080")),
        ("tauri://localhost", ("tauri://localhost",)),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_origins_in_environment_are_split(text: str, origins: tuple[str, ...]) -> None:
    assert load({"TIDEWIRE_ORIGINS": text}).origins == origins


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_short_forms_give_one_issuer_and_one_key() -> None:
    settings = load({"TIDEWIRE_API__KEY": KEY, "TIDEWIRE_API__TENANT": "acme"})
    [issuer] = settings.all_issuers()
    assert (issuer.issuer, issuer.audience, issuer.algorithm) == ("tidewire", "tidewire", "HS256")
    assert issuer.secret is not None
    assert issuer.secret.get_secret_value() == SECRET
    [key] = settings.all_api_keys()
    assert (key.name, key.key.get_secret_value(), key.tenant) == ("default", KEY, "acme")


def test_further_issuers_and_keys_follow_the_short_forms() -> None:
    issuers = [{"issuer": "https://i", "audience": "a", "algorithm": "RS256", "jwks_url": "https://i/jwks.json"}]
    keys = [{"name": "billing", "key": KEY + "2", "tenant": "acme"}]
    settings = load(
        {
            "TIDEWIRE_API__KEY": KEY,
            "TIDEWIRE_API__KEYS": json.dumps(keys),
            "TIDEWIRE_AUTH__ISSUERS": json.dumps(issuers),
        }
    )
    assert [issuer.issuer for issuer in settings.all_issuers()] == ["tidewire", "https://i"]
    assert [key.name for key in settings.all_api_keys()] == ["default", "billing"]


def test_secrets_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"\n  {SECRET}\n\n")
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "keys").write_text(json.dumps([{"name": "b", "key": KEY + "2", "tenant": "t"}]))
    settings = load_settings(
        None,
        {
            "TIDEWIRE_AUTH__SECRET_FILE": str(tmp_path / "secret"),
            "TIDEWIRE_API__KEY_FILE": str(tmp_path / "key"),
            "TIDEWIRE_API__KEYS_FILE": str(tmp_path / "keys"),
            "TIDEWIRE_CONTRACT": "c.yaml",
        },
    )
    assert settings.auth.secret is not None
    assert settings.auth.secret.get_secret_value() == SECRET
    assert [key.key.get_secret_value() for key in settings.all_api_keys()] == [KEY, KEY + "2"]


def test_secrets_are_not_shown() -> None:
    issuers = [{"issuer": "i", "audience": "a", "algorithm": "HS256", "secret": SECRET + "!"}]
    settings = load(
        {
            "TIDEWIRE_API__KEY": KEY,
            "TIDEWIRE_API__KEYS": json.dumps([{"name": "b", "key": KEY + "2", "tenant": "t"}]),
            "TIDEWIRE_AUTH__ISSUERS": json.dumps(issuers),
        }
    )
    shown = repr(settings) + str(settings) + settings.model_dump_json() + repr(settings.all_issuers())
    assert SECRET not in shown
    assert KEY not in shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TIDEWIRE_AUTH__SECRET", "canary-short"),
        ("TIDEWIRE_API__KEY", "canary short"),
        ("TIDEWIRE_API__KEYS", '[{"name": "a", "key": "canary", "tenant": "t", "wrong": "canary"}]'),
        ("TIDEWIRE_API__KEYS", '{"canary": 1}'),
        ("TIDEWIRE_API__KEYS", "canary"),
        (
            "TIDEWIRE_AUTH__ISSUERS",
            '[{"issuer": "i", "audience": "a", "algorithm": "RS256", "secret": "%s"}]' % ("canary" * 9),
        ),
        ("TIDEWIRE_AUTH__ISSUERS", '["canary"]'),
    ],
)
def test_faults_name_the_variable_without_its_value(name: str, text: str) -> None:
    with pytest.raises(SettingsFaults) as caught:
        load({name: text})
    assert {fault.file for fault in caught.value.faults} == {name}
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


# --- faults ------------------------------------------------------------------------------------------------------------


def test_faults_of_both_sources_are_reported_together(tmp_path: Path) -> None:
    found = faults(
        {"TIDEWIRE_OPS_PORT": "high", "TIDEWIRE_LIMTS__BATCH": "1", "TIDEWIRE_DEADLINES__HELLO": "0"},
        """\
        prot: 80
        port: 99999
        auth:
          secrets: x
          anonymous: maybe
          issuers:
            - {issuer: a, audience: b, algorithm: HS512}
            - issuer: a
              audiense: b
        limits:
          btach: 1
          batch: 0
          user_rate: {per_second: fast}
        log: {level: loud}
        """,
        tmp_path,
    )
    assert found == [
        ("TIDEWIRE_DEADLINES__HELLO", None, "deadlines.hello: should be greater than 0"),
        ("TIDEWIRE_LIMTS__BATCH", None, "there is no such setting; did you mean 'TIDEWIRE_LIMITS__BATCH'?"),
        (
            "TIDEWIRE_OPS_PORT",
            None,
            "ops_port: should be a valid integer, unable to parse string as an integer",
        ),
        ("settings.yaml", 1, "there is no setting 'prot'; did you mean 'port'?"),
        ("settings.yaml", 2, "port: should be less than or equal to 65535"),
        ("settings.yaml", 4, "there is no setting 'auth.secrets'; did you mean 'secret'?"),
        ("settings.yaml", 5, "auth.anonymous: should be a valid boolean, unable to interpret input"),
        ("settings.yaml", 7, "auth.issuers.0.algorithm: should be 'HS256', 'RS256', 'ES256' or 'EdDSA'"),
        ("settings.yaml", 8, "auth.issuers.1.audience is missing"),
        ("settings.yaml", 8, "auth.issuers.1.algorithm is missing"),
        ("settings.yaml", 9, "there is no setting 'auth.issuers.1.audiense'; did you mean 'audience'?"),
        ("settings.yaml", 11, "there is no setting 'limits.btach'; did you mean 'batch'?"),
        ("settings.yaml", 12, "limits.batch: should be greater than or equal to 1"),
        (
            "settings.yaml",
            13,
            "limits.user_rate.per_second: should be a valid number, unable to parse string as a number",
        ),
        ("settings.yaml", 14, "log.level: should be 'debug', 'info', 'warning' or 'error'"),
    ]


def test_contradictions_are_reported_with_other_faults() -> None:
    with pytest.raises(SettingsFaults) as caught:
        load_settings(None, {"TIDEWIRE_PORT": "x"})
    assert [fault.file for fault in caught.value.faults] == ["TIDEWIRE_PORT", "settings", "settings"]


ENDPOINTS = """
hooks:
  endpoints: [{name: auth, url: "http://x", tenants: [a], secrets: [whsec_c2VjcmV0IG9mIHRoZSBiYWNrZW5kIGZvciB0ZXN0cyE=]}]
  connect: {endpoint: auth, tenant: a, rate: {burst: 7}}
"""


def test_hook_for_clients_needs_its_endpoint_and_replaces_tokens(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(ENDPOINTS)
    connect = load_settings(path, {"TIDEWIRE_CONTRACT": "c"}).hooks.connect
    assert (connect.endpoint, connect.tenant, connect.without_token, connect.headers) == ("auth", "a", True, ())
    assert (connect.rate.per_second, connect.rate.burst) == (200, 7)
    for name, wrong, reason in (
        ("ENDPOINT", "other", "no endpoint 'other' for the tenant 'a'"),
        ("TENANT", "b", "no endpoint 'auth' for the tenant 'b'"),
        ("HEADERS", '["x-a", "X-A"]', "names a header twice"),
        ("HEADERS", '["x-a", "Cookie"]', "cookie is never sent"),
    ):
        [(_, _, told)] = faults({f"TIDEWIRE_HOOKS__CONNECT__{name}": wrong}, ENDPOINTS, tmp_path)
        assert reason in told


def test_production_without_settings_names_what_to_set() -> None:
    with pytest.raises(SettingsFaults) as caught:
        load_settings(None, {})
    reasons = str(caught.value)
    assert "TIDEWIRE_AUTH__SECRET_FILE" in reasons
    assert "TIDEWIRE_CONTRACT" in reasons
    assert load_settings(None, {"TIDEWIRE_DEMO": "1"}).demo
    assert load_settings(None, {"TIDEWIRE_AUTH__ANONYMOUS": "true", "TIDEWIRE_CONTRACT": "c"}).auth.anonymous


@pytest.mark.parametrize(
    ("environ", "file", "reason"),
    [
        ({"TIDEWIRE_AUTH__COOKIE": "session"}, "TIDEWIRE_AUTH__COOKIE", "set origins to the sites"),
        ({"TIDEWIRE_AUTH__COOKIE": "session", "TIDEWIRE_ORIGINS": "*"}, "TIDEWIRE_AUTH__COOKIE", "without '*'"),
        ({"TIDEWIRE_ORIGINS": "*,https://a.example"}, "TIDEWIRE_ORIGINS", "name no others"),
        ({"TIDEWIRE_ORIGINS": "https://a.example/"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "https://A.example"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "a.example"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "https://u@a.example"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "https://a.example:x"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "https://*.example"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "https://a.example:443"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_ORIGINS": "null"}, "TIDEWIRE_ORIGINS", "is not an origin"),
        ({"TIDEWIRE_OPS_PORT": "8080"}, "TIDEWIRE_OPS_PORT", "the same as port"),
        ({"TIDEWIRE_BROKER__URL": "redis://u:p@h"}, "TIDEWIRE_BROKER__URL", "belong into broker.user"),
        ({"TIDEWIRE_BROKER__URL": "kafka://h"}, "TIDEWIRE_BROKER__URL", "is none of memory://"),
        (
            {"TIDEWIRE_BROKER__URL": "redis://h", "TIDEWIRE_BROKER__CA": "c"},
            "TIDEWIRE_BROKER__CA",
            "begin it with rediss",
        ),
        (
            {"TIDEWIRE_BROKER__URL": "nats://h", "TIDEWIRE_BROKER__CERTIFICATE": "c"},
            "TIDEWIRE_BROKER__CERTIFICATE",
            "tls",
        ),
        ({"TIDEWIRE_BROKER__PRIVATE_KEY": "k"}, "TIDEWIRE_BROKER__PRIVATE_KEY", "is for TLS"),
        (
            {"TIDEWIRE_BROKER__URL": "rediss+sentinel://h/m", "TIDEWIRE_BROKER__PRIVATE_KEY": "k"},
            "TIDEWIRE_BROKER__PRIVATE_KEY",
            "set broker.certificate too",
        ),
        ({"TIDEWIRE_PROXY__HOPS": "-1"}, "TIDEWIRE_PROXY__HOPS", "greater than or equal to 0"),
        ({"TIDEWIRE_API__TENANT": "a b"}, "TIDEWIRE_API__TENANT", "match pattern"),
        ({"TIDEWIRE_API__KEYS": "[}"}, "TIDEWIRE_API__KEYS", "is not a JSON list"),
        ({"TIDEWIRE_API__KEYS": '[{"name": "a", "name": "b"}]'}, "TIDEWIRE_API__KEYS", "'name' appears twice"),
        ({"TIDEWIRE_AUTH__SECRET_FILE": "/nowhere"}, "TIDEWIRE_AUTH__SECRET_FILE", "only one of them"),
        ({"TIDEWIRE_API__KEY_FILE": "/nowhere"}, "TIDEWIRE_API__KEY_FILE", "/nowhere cannot be read: No such file"),
        ({"TIDEWIRE_PORT_FILE": "/nowhere"}, "TIDEWIRE_PORT_FILE", "there is no such setting"),
        ({"TIDEWIRE_ROLLOUT__REBALANCE_RATE": "inf"}, "TIDEWIRE_ROLLOUT__REBALANCE_RATE", "finite number"),
        ({"TIDEWIRE_BROKER__TIMEOUT": "inf"}, "TIDEWIRE_BROKER__TIMEOUT", "finite number"),
        ({"TIDEWIRE_COMPRESSION__LEVEL": "0"}, "TIDEWIRE_COMPRESSION__LEVEL", "greater than or equal to 1"),
        ({"TIDEWIRE_COMPRESSION__LEVEL": "10"}, "TIDEWIRE_COMPRESSION__LEVEL", "less than or equal to 9"),
        ({"TIDEWIRE_COMPRESSION__MIN_BYTES": "-1"}, "TIDEWIRE_COMPRESSION__MIN_BYTES", "greater than or equal to 0"),
        ({"TIDEWIRE_AUTH": "{}"}, "TIDEWIRE_AUTH", "there is no such setting"),
    ],
)
def test_fault_in_environment_is_reported(environ: dict[str, str], file: str, reason: str) -> None:
    [(name, line, told)] = faults(environ)
    assert (name, line) == (file, None)
    assert reason in told


def issuer(**changes: Any) -> dict[str, Any]:
    whole = {"issuer": "i", "audience": "a", "algorithm": "HS256", "secret": "s" * 32} | changes
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([issuer(secret=None)], "HS256 needs secret, and only that; given: nothing"),
        ([issuer(jwks_file="x")], "given: secret, jwks_file"),
        ([issuer(algorithm="ES256")], "ES256 needs jwks_file or jwks_url, and only that; given: secret"),
        ([issuer(algorithm="RS256", secret=None, jwks_url="http://a/b")], "is not an https:// address"),
        ([issuer(algorithm="RS256", secret=None, jwks_url="https://u:p@a/b")], "is not an https:// address"),
        ([issuer(secret="s" * 31)], "shorter than 32 bytes"),
        ([issuer(default_tenant="a/b")], "match pattern"),
        ([issuer(leeway=301)], "less than or equal to 300"),
        ([issuer(algorithm="none")], "should be 'HS256'"),
        ([issuer(issuer="tidewire")], "appears twice"),
    ],
)
def test_invalid_issuer_is_reported(entries: list[dict[str, Any]], reason: str) -> None:
    [(name, _, told)] = faults({"TIDEWIRE_AUTH__ISSUERS": json.dumps(entries)})
    assert name == "TIDEWIRE_AUTH__ISSUERS"
    assert reason in told


def test_duplicate_key_names_are_reported() -> None:
    keys = [{"name": "default", "key": KEY, "tenant": "t"}]
    found = faults({"TIDEWIRE_API__KEY": KEY, "TIDEWIRE_API__KEYS": json.dumps(keys)})
    assert [reason.split(";")[1].strip() for _, _, reason in found] == [
        "the log could not tell which is meant",
        "it could not tell its tenant",
    ]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "is empty"),
        ("- a\n", 1, "settings are a mapping"),
        ("port: [\n", 2, "is not YAML"),
        ("port: 1\nport: 2\n", 2, "is a duplicate key"),
        ("host: a\nlimits: 3\n", 2, "limits: should be"),
        ("host: a\ncompression:\n  levl: 3\n", 3, "'compression.levl'; did you mean 'level'?"),
        ("host: a\nlimits: {user_rate: 3}\n", 2, "limits.user_rate: should be"),
        ("origins: https://a.example\n", 1, "origins: should be a valid tuple"),
    ],
)
def test_fault_in_file_is_reported(tmp_path: Path, content: str, line: int, reason: str) -> None:
    [(name, at, told)] = faults({}, content, tmp_path)
    assert (name, at) == ("settings.yaml", line)
    assert reason in told


def test_unreadable_file_reports_no_missing_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsFaults) as caught:
        load_settings(tmp_path / "none.yaml", {})
    assert [fault.reason for fault in caught.value.faults] == ["cannot be read: No such file or directory"]


def test_service_links_of_kubernetes_are_ignored() -> None:
    settings = load(
        {
            "TIDEWIRE_SERVICE_HOST": "10.0.0.1",
            "TIDEWIRE_SERVICE_PORT": "80",
            "TIDEWIRE_SERVICE_PORT_HTTP": "80",
            "TIDEWIRE_PORT": "tcp://10.0.0.1:80",
            "TIDEWIRE_PORT_80_TCP": "tcp://10.0.0.1:80",
            "TIDEWIRE_PORT_80_TCP_ADDR": "10.0.0.1",
        }
    )
    assert settings.port == 8080


def test_other_variables_are_ignored() -> None:
    assert load({"PORT": "1", "TIDEWIRED_PORT": "2", "TIDEWIRE_CONFIG": "x.yaml"}).port == 8080
