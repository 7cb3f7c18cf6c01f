"""Each preset against the CRDs of the versions of its controller: on a real API server, unknown fields refused.

The chart's files/versions.yaml says what each version takes. Both sides are tried: with the version in values everything is
accepted, and without it an older version refuses exactly what the file says that it lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES, gateway, ingress
from tests.chart.tools import CHART, NAME, NAMESPACE, RELEASE, Document, Helm, Refused, Values, helms
from tests.cluster.api import Api
from tests.cluster.client import WITHIN
from tests.cluster.control_plane import Storage
from tests.cluster.crds import Crd, load, short, sources

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("versions")]  # one API server, whose CRDs come and go

VERSIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = yaml.safe_load(
    (CHART / "files" / "versions.yaml").read_text(encoding="utf-8")
)
CONTROLLERS = {
    one["crds"]: (group, preset)
    for group, presets in VERSIONS.items()
    for preset, one in presets.items()
    if "crds" in one
}
"""Name in crds.yaml → group and preset in the chart's file."""
GATEWAYS = {preset: one["gatewayApi"] for preset, one in VERSIONS["gateway"].items()}
"""Implementation → the oldest Gateway API that it needs."""


def _pairs(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, version, id=f"{name}-{version}") for name in names for version in sources()[name].sums]


def _values(group: str, preset: str, version: str) -> list[Values]:
    """Every case of a preset, with that version of the controller; an empty one is not given."""
    if group == "monitoring":
        return [CASES[name] for name in ("service monitor", "pod monitor", "rules of one's own")]
    if group == "autoscaling":
        keda = CASES["keda"]["autoscaling"]["keda"]
        return [{**CASES["keda"], "autoscaling": {"keda": {**keda, "version": version}}}]
    make, name = (gateway, "implementationVersion") if group == "gateway" else (ingress, "presetVersion")
    made = [make(preset), make(preset, sticky=True)]
    return [{**values, group: {**values[group], name: version}} for values in made]


def _older(version: str, than: str) -> bool:
    return [int(part) for part in version.split(".")] < [int(part) for part in than.split(".")]


def _rendered(helm: Helm, values: Iterable[Values], crds: Iterable[Crd]) -> list[Document]:
    """The documents of all these values for which there are CRDs. Fails if there are none."""
    kinds = {(crd["spec"]["group"], crd["spec"]["names"]["kind"]) for crd in crds}
    found = [
        document
        for one in values
        for document in helm.template(one)
        if (document["apiVersion"].rpartition("/")[0], document["kind"]) in kinds
    ]
    assert found
    return found


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """An API server of its own, as CRDs come and go; with the namespace of the chart's cases."""
    servers = Storage()
    asyncio.run(servers.start())
    try:
        found = Api(servers.kubeconfig)
        found.ensure_namespace(NAMESPACE)
        yield found
    finally:
        servers.end()


@pytest.fixture(scope="module")
def helm() -> Helm:
    """The newest Helm. It only renders: what it renders is the same with every other, as tests/chart proves."""
    return helms()[max(helms())]


@pytest.mark.parametrize(("name", "version"), _pairs(CONTROLLERS))
def test_preset_fits_version_of_controller(api: Api, helm: Helm, name: str, version: str) -> None:
    group, preset = CONTROLLERS[name]
    told = VERSIONS[group][preset]
    crds = load(name, version)
    lacking = {field for field, since in told.get("since", {}).items() if _older(short(version), since)}
    with api.installed(crds):
        assert not api.refusals(_rendered(helm, _values(group, preset, version), crds))
        refused = api.refusals(_rendered(helm, _values(group, preset, ""), crds))
    assert bool(refused) == bool(lacking), refused
    assert all(any(field in one for one in refused) for field in lacking), refused
    assert all(any(field in one for field in lacking) for one in refused), refused


@pytest.mark.parametrize(("name", "version"), _pairs(["gateway-api"]))
def test_route_fits_version_of_gateway_api(api: Api, helm: Helm, name: str, version: str) -> None:
    crds = load(name, version)
    with api.installed(crds):
        for implementation, oldest in GATEWAYS.items():
            route = gateway(implementation)["gateway"]
            own = {"enabled": True, "className": "public"}
            documents = _rendered(helm, [{"gateway": {**route, "create": own}}], crds)
            refused = api.refusals(documents)
            assert {document["kind"] for document in documents} == {"Gateway", "HTTPRoute"}
            assert bool(refused) == _older(short(version), oldest), (implementation, refused)


@pytest.mark.parametrize(
    ("version", "spec"),
    [
        ("v1.6.3", {"type": "Cookie", "sessionName": "pod"}),
        ("v1.7.0", {"type": "Cookie", "cookie": {"name": "pod"}}),
    ],
)
def test_session_persistence_needs_experimental_channel(api: Api, helm: Helm, version: str, spec: Values) -> None:
    route = CASES["gateway session persistence"]["gateway"]
    values = [{"gateway": {**route, "sessionPersistence": {"enabled": True, "spec": spec}}}]
    for name, refuses in (("gateway-api", True), ("gateway-api-experimental", False)):
        crds = load(name, version)
        with api.installed(crds):
            refused = api.refusals(_rendered(helm, values, crds))
        assert bool(refused) == refuses, refused
        assert all("sessionPersistence" in one for one in refused), refused


@pytest.mark.parametrize("major", [3, 4])
def test_release_installs_on_envoy_gateway_1_7(api: Api, major: int) -> None:
    helm = replace(helms()[major], kubeconfig=api.kubeconfig)
    told, untold = _values("gateway", "envoy-gateway", "1.7")[0], _values("gateway", "envoy-gateway", "")[0]
    with api.installed([*load("gateway-api", "v1.4.1"), *load("envoy-gateway", "v1.7.0")]):
        assert _timeout_of_release(api, helm, told) == {"requestTimeout": "0s"}
        if major == 3:  # the API server warns and drops the field
            assert _timeout_of_release(api, helm, untold) == {"requestTimeout": "0s"}
        else:
            with pytest.raises(Refused, match="streamIdleTimeout: field not declared in schema"):
                _timeout_of_release(api, helm, untold)


def _timeout_of_release(api: Api, helm: Helm, values: Values) -> Any:
    """Installs the chart and uninstalls it. Returns what the API server kept of the policy's timeouts. Raises Refused."""
    try:
        helm.run("install", RELEASE, str(CHART), "--namespace", NAMESPACE, values=values, within=WITHIN)
        path = f"/apis/gateway.envoyproxy.io/v1alpha1/namespaces/{NAMESPACE}/backendtrafficpolicies/{NAME}"
        status, policy = api.call("GET", path)
        assert status == 200, policy
        return policy["spec"]["timeout"]["http"]
    finally:
        helm.run("uninstall", RELEASE, "--namespace", NAMESPACE, within=WITHIN)
