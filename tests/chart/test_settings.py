"""The service itself reads what the chart writes, laid out as a kubelet does, and finds nothing wrong."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from service.cli.check import load_all
from service.settings import Settings, load_settings
from service.settings.model import Setting, all_settings
from tests.chart.cases import CASES, MODERATION, SOME, WEBHOOK, every_secret, gateway, ingress
from tests.chart.conftest import rendered
from tests.chart.pod_view import lay
from tests.chart.tools import CHART, WHOLE, Document, Helm, Values, of_kind
from tests.stores.certificates import Certificates
from tests.support.backend import SECRET as WHSEC

pytestmark = pytest.mark.chart

SECRET = "a secret for tests, long enough for HS256"
KEY = "an-api-key-for-tests-0123456789"
_ISSUERS = json.dumps([{"issuer": "https://login.test/", "audience": "chat", "algorithm": "HS256", "secret": SECRET}])
_PAGE = """\
channels:
  "room:{room}":
    subscribe: grant
    history: {events: 10, ttl: 1h}
    events:
      chat.message: {publish: server, delivery: durable, schema: {properties: {text: {$ref: text.json}}}}
"""
with TemporaryDirectory() as _folder:
    _made = Certificates(Path(_folder))
    _CA, _CERTIFICATE, _PRIVATE_KEY = (
        file.read_text(encoding="ascii") for file in (_made.ca, _made.client_certificate, _made.client_key)
    )
GIVEN = {
    "auth": {"hs256": SECRET, "auth-secret": SECRET},
    "issuers": {"issuers.json": _ISSUERS},
    "jwks": {"login.json": '{"keys": []}'},
    "hooks": {"moderation": f"{WHSEC}\n", "ca.crt": _CA},
    "webhooks": {"archive": f"{WHSEC}\n"},
    "api": {
        "api-key": KEY,
        "more.json": '[{"name": "billing", "tenant": "acme", "key": "another-key-for-tests-01234"}]',
    },
    "redis": {"password": "p", "sentinel": "s"},
    "redis-ca": {"ca.crt": _CA},
    "redis-client": {"tls.crt": _CERTIFICATE, "tls.key": _PRIVATE_KEY},
    "contracts": {"main.yaml": _PAGE, "text.json": '{"type": "string"}'},
}


def accepted(documents: list[Document], root: Path) -> Settings:
    """What the service makes of them. Raises Faults as `tidewire check` tells them."""
    view = lay(documents, root, GIVEN)
    settings, contract = load_all(view.config, view.environ)
    assert contract.channels
    return settings


@pytest.mark.parametrize("case", [case for case in CASES if WHOLE or case in SOME])
def test_service_accepts_the_rendered_settings(helm: Helm, case: str, tmp_path: Path) -> None:
    settings = accepted(rendered(helm, case), tmp_path)
    assert (settings.host, settings.port) == ("::", 8080)  # inside a pod
    assert (settings.ops_host, settings.ops_port) == ("::", 9090)  # inside a pod
    asked = CASES[case]
    is_behind = any(asked.get(name, {}).get("enabled") for name in ("ingress", "gateway"))
    assert settings.proxy.hops == int(is_behind)
    assert settings.deadlines.shutdown == 120
    assert settings.rollout.max_age == 43_200


def test_every_secret_reaches_its_setting(helm: Helm, tmp_path: Path) -> None:
    settings = accepted(helm.template(every_secret()), tmp_path)
    assert [issuer.issuer for issuer in settings.all_issuers()] == ["tidewire", "https://login.test/"]
    assert [key.name for key in settings.all_api_keys()] == ["default", "billing"]
    assert settings.broker.password is not None
    assert settings.broker.password.get_secret_value() == "p"
    assert settings.broker.sentinel_password is not None
    assert settings.broker.sentinel_password.get_secret_value() == "s"
    for file in (settings.broker.ca, settings.broker.certificate, settings.broker.private_key):
        assert file is not None
        assert file.read_text(encoding="utf-8").startswith("-----BEGIN")
    assert (tmp_path / "etc/tidewire/jwks/login.json").exists()
    [endpoint] = settings.hooks.endpoints
    assert endpoint.secrets_file is not None
    assert endpoint.secrets_file.read_text(encoding="utf-8") == f"{WHSEC}\n"
    [told] = settings.webhooks.endpoints
    assert told.secrets_file is not None
    assert told.secrets_file.read_text(encoding="utf-8") == f"{WHSEC}\n"


def test_backend_alone_authenticates_clients(helm: Helm, tmp_path: Path) -> None:
    settings = accepted(rendered(helm, "connect hook"), tmp_path)
    assert settings.all_issuers() == ()
    assert settings.hooks.connect.endpoint == "moderation"
    assert settings.hooks.connect.headers == ("x-device",)
    assert settings.hooks.connect.rate.per_second == 20


def test_jwks_file_is_mounted_at_its_path(helm: Helm, tmp_path: Path) -> None:
    issuer = {"issuer": "i", "audience": "a", "algorithm": "ES256", "jwks_file": "/etc/tidewire/jwks/login.json"}
    values = {"settings": {"auth": {"issuers": [issuer]}}, "secrets": {"jwks": {"existingConfigMap": "jwks"}}}
    view = lay(helm.template(values), tmp_path, GIVEN)
    [found] = load_settings(view.config, view.environ).auth.issuers
    assert found.jwks_file == tmp_path / "etc/tidewire/jwks/login.json"
    assert found.jwks_file.exists()


def test_generated_credentials_are_good_and_new_each_time(helm: Helm, tmp_path: Path) -> None:
    both = [accepted(helm.template({}), tmp_path / name) for name in "ab"]
    secrets = {settings.auth.secret.get_secret_value() for settings in both if settings.auth.secret}
    keys = {settings.api.key.get_secret_value() for settings in both if settings.api.key}
    assert len(secrets) == len(keys) == 2
    assert not secrets & keys


# --- drift ------------------------------------------------------------------------------------------------------------


CHARTS_OWN = {"host", "port", "ops_host", "ops_port", "workers", "contract", "demo"}
FILES = {"broker.ca", "broker.certificate", "broker.private_key"}
SAMPLES: dict[str, Any] = {
    "origins": ["https://app.example.com"],
    "auth.issuers": [
        {"issuer": "i", "audience": "a", "algorithm": "RS256", "jwks_url": "https://login.test/jwks", "leeway": 7.5}
    ],
    "auth.issuer": "me",
    "auth.audience": "you",
    "auth.anonymous_tenant": "guests",
    "auth.cookie": "session",
    "api.tenant": "acme",
    "broker.url": "redis+cluster://r1:7000,r2:7000",
    "broker.user": "u",
    "broker.sentinel_user": "v",
    "broker.prefix": "chat",
    "limits.on_user_cap": "replace",
    "limits.http_connections_per_ip": 750,
    "outbox.tenant_share": 0.5,
    "native_send": "off",
    "rollout.max_age": 86_401,  # one second is refused with reason
    "log.level": "debug",
    "log.format": "json",
    "hooks.connect.endpoint": MODERATION["name"],
    "hooks.connect.tenant": "acme",
    "hooks.connect.headers": ["x-device"],
    "webhooks.clients.endpoint": WEBHOOK["name"],
    "webhooks.clients.tenant": "acme",
}


def _other(setting: Setting) -> Any:
    """A value that is not the default, and one that a careless template would spoil: large numbers, flipped switches."""
    if setting.name in SAMPLES:
        return SAMPLES[setting.name]
    match setting.default:
        case bool():
            return not setting.default
        case int() | float():
            return setting.default + 1
    raise AssertionError(f"{setting.name} has no sample: add one")


@dataclass(frozen=True)
class Every:
    """Every setting that can stand in `settings`, at a value of its own."""

    values: dict[str, Any]
    wanted: dict[str, Any]


def _every() -> Every:
    values: dict[str, Any] = {}
    wanted = {}
    for setting in all_settings():
        if setting.name in CHARTS_OWN | FILES or (setting.is_secret and setting.name != "auth.issuers"):
            continue
        holder = values
        for step in setting.place[:-1]:
            holder = holder.setdefault(step, {})
        holder[setting.place[-1]] = wanted[setting.name] = _other(setting)
    values["hooks"]["endpoints"] = [{**MODERATION, "tenants": ["acme"]}]
    values["webhooks"]["endpoints"] = [{**WEBHOOK, "tenants": ["acme"]}]
    return Every(values, wanted)


def test_every_setting_of_the_service_passes_through_unchanged(helm: Helm, tmp_path: Path) -> None:
    every = _every()
    secrets = {"hooks": {"existingSecret": "hooks"}}
    loaded = accepted(helm.template({"settings": every.values, "secrets": secrets}), tmp_path)
    for name, wanted in every.wanted.items():
        found: Any = loaded
        for step in name.split("."):
            found = getattr(found, step)
        if name == "auth.issuers":
            assert [issuer.leeway for issuer in found] == [7.5]
        else:
            assert (list(found) if isinstance(found, tuple) else found) == wanted, name


@pytest.mark.parametrize(
    ("values", "rebalances"),
    [
        (ingress("nginx"), True),
        (ingress("nginx", sticky=True), False),
        ({**ingress("nginx"), "settings": {"rollout": {"rebalance": False}}}, False),
        ({"gateway": {**gateway("")["gateway"], "sessionPersistence": {"enabled": True}}}, False),
    ],
)
def test_pods_that_cookies_lead_back_to_do_not_rebalance(
    helm: Helm, values: Values, rebalances: bool, tmp_path: Path
) -> None:
    rollout = {"drain_rate": 50, **values.get("settings", {}).get("rollout", {})}
    loaded = accepted(helm.template({**values, "settings": {"rollout": rollout}}), tmp_path)
    assert loaded.rollout.rebalance is rebalances
    assert loaded.rollout.drain_rate == 50


def test_settings_that_contradict_the_contract_of_the_service_are_still_told(helm: Helm, tmp_path: Path) -> None:
    """What the schema cannot know the pod tells at its start, and so does this check."""
    documents = helm.template({"settings": {"origins": ["https://app.example.com/"]}})
    view = lay(documents, tmp_path)
    with pytest.raises(Exception, match="is not an origin"):
        load_settings(view.config, view.environ)


def test_readme_production_values_work(helm: Helm) -> None:
    page = (CHART / "README.md").read_text(encoding="utf-8")
    text = page.split("<!-- file: production.yaml -->\n```yaml\n")[1].split("```")[0]
    documents = helm.template(yaml.safe_load(text))
    assert of_kind(documents, "Deployment")["spec"]["replicas"] == 3
    assert "Secret" not in {document["kind"] for document in documents}


TASKS = dict(
    re.findall(r"^\| ([^|]+) \| `(\{.*\})` \|$", (CHART / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
)
"""Values for the common tasks of the chart's page."""


@pytest.mark.parametrize("task", TASKS if WHOLE else list(TASKS)[::12])
def test_readme_common_tasks_are_accepted_values(helm: Helm, task: str, tmp_path: Path) -> None:
    view = lay(
        helm.template(yaml.safe_load(TASKS[task])), tmp_path, {**GIVEN, "tidewire-api": {"api-key": KEY}, "ca": {}}
    )
    assert load_settings(view.config, view.environ).contract is not None


def test_readme_has_common_tasks() -> None:
    assert "Run 3 pods on a Redis" in TASKS
