"""Names of objects: valid for every release that Helm takes, never the same for two, and kept over upgrades."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.api import owned, serving, templated
from tests.chart.cases import REDIS, ingress
from tests.chart.schemas import faults, has_schemas
from tests.chart.tools import CHART, DEADLINE, KUBERNETES, NAMESPACE, WHOLE, Document, Helm, Refused, read

pytestmark = pytest.mark.chart

LONG = "a-very-long-name-of-a-company-and-its-chat-production"
SOME = [
    "tidewire",
    "tidewire-ops",
    "tidewire-1",
    "a.b",
    "a-b",
    "1st",
    "1234",
    LONG,
    f"{LONG[:-1]}m",
]
RELEASES = [
    *SOME,
    "rt",
    "tidewire-test",
    "tidewire-1-1",
    "tidewire-test-health",
    "a.b.c",
    "a-b.c",
    "a-b-c",
    "1e3",
    "true",
    LONG[:-9],
    f"tidewire-{LONG[:44]}",
    f"tidewire-{LONG[:43]}x",
]
EVERYTHING: dict[str, Any] = {
    **ingress("contour"),
    "settings": REDIS,
    "dashboards": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "autoscaling": {"hpa": {"enabled": True}},
}
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")

Title = tuple[str, str, str]


def made(helm: Helm, release: str, values: dict[str, Any]) -> list[Document]:
    """What a release of that name is made of."""
    text = helm.run("template", release, str(CHART), "--namespace", NAMESPACE, values=values)
    return read(text)


def title(document: Document) -> Title:
    """What an object is found by."""
    metadata = document["metadata"]
    return document["kind"], metadata["namespace"], metadata["name"]


def check(documents: list[Document]) -> None:
    """Every name and label is one that Kubernetes takes, in versions whose Services are DNS-1035 labels too."""
    for document in documents:
        kind, _, name = title(document)
        assert _SUBDOMAIN.fullmatch(name), (kind, name)
        assert len(name) <= 253
        if kind in ("Service", "Deployment", "HorizontalPodAutoscaler"):
            assert _DNS_1035.fullmatch(name), (kind, name)
        labels = document["metadata"]["labels"]
        assert all(isinstance(value, str) and _LABEL_VALUE.fullmatch(value) for value in labels.values()), labels
        assert "app.kubernetes.io/instance" in labels


def fullname(documents: list[Document]) -> str:
    """The name without a suffix."""
    [name] = [document["metadata"]["name"] for document in documents if document["kind"] == "Deployment"]
    return str(name)


def test_names_of_every_release_are_valid_and_its_own(helm: Helm) -> None:
    found: dict[str, set[Title]] = {}
    for release in RELEASES if WHOLE else SOME:
        documents = made(helm, release, EVERYTHING)
        check(documents)
        titles = [title(document) for document in documents]
        assert len(titles) == len(set(titles)), release
        found[release] = set(titles)
    for one, other in itertools.combinations(found, 2):
        assert not found[one] & found[other], (one, other)


@pytest.mark.parametrize("override", ["nameOverride", "fullnameOverride"] if WHOLE else ["fullnameOverride"])
def test_overrides_make_names_that_are_valid_and_differ(helm: Helm, override: str) -> None:
    values = ["1st", "a.b", "a-b", "x" * 60, "x" * 61, "Chat", "chat", "on", "my-ops"]
    found = [made(helm, "rt", {override: value}) for value in values]
    for documents in found:
        check(documents)
    assert len({fullname(documents) for documents in found}) == len(values)


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("rt", {}, "rt-tidewire"),
        ("tidewire", {}, "tidewire"),
        ("my-tidewire", {}, "my-tidewire"),
        ("tidewire-1", {}, "tidewire-1"),
        ("tidewire-test", {}, "tidewire-test"),
        (LONG[:43].strip("-"), {}, f"{LONG[:43].strip('-')}-tidewire"),
        ("rt", {"nameOverride": "chat"}, "rt-chat"),
        ("chat", {"nameOverride": "chat"}, "chat"),
        ("rt", {"fullnameOverride": "x" * 52}, "x" * 52),
    ],
)
def test_names_that_were_valid_stay(helm: Helm, release: str, values: dict[str, Any], name: str) -> None:
    assert fullname(made(helm, release, values)) == name


def test_numeric_release_name_is_text_everywhere(helm: Helm) -> None:
    if not has_schemas(KUBERNETES[-1]):
        pytest.skip("there are no schemas of Kubernetes here")
    for document in made(helm, "1234", {**EVERYTHING, "namespaceOverride": "5678"}):
        assert not faults(document, KUBERNETES[-1]), title(document)


# --- beside other releases --------------------------------------------------------------------------------------------


async def test_name_of_another_release_is_not_taken(each_helm: Helm) -> None:
    others = [
        [owned("Service", "rt-tidewire", release="rt-tidewire")],
        [owned("Service", "rt-tidewire-ops", release="rt-tidewire-ops")],
        [owned("ConfigMap", "rt-tidewire", release="other")],
        [owned("Secret", "rt-tidewire", release="rt-tidewire")],
    ]
    for held in others if WHOLE else others[:1]:
        async with serving(held) as address:
            documents = await templated(each_helm, address)
        name = fullname(documents)
        assert re.fullmatch(r"rt-tidewire-[0-9a-f]{8}", name)
        assert not {title(document) for document in documents} & {title(document) for document in held}
        # Also when the other one is gone.
        async with serving([owned("Service", name)]) as address:
            assert fullname(await templated(each_helm, address)) == name


async def test_installed_release_keeps_its_name(helm: Helm) -> None:
    for release, name in (
        (LONG, LONG[:52]),
        ("tidewire-ops", "tidewire-ops"),
        ("1st", "1st-tidewire"),
        ("rt", "rt-tidewire"),
    ):
        held = [owned("Service", name, release=release), owned("Service", f"{name}-ops", release=release)]
        async with serving(held) as address:
            assert fullname(await templated(helm, address, release=release)) == name


async def test_two_releases_of_one_name_in_one_namespace_are_refused(helm: Helm) -> None:
    other = owned("Service", "rt-tidewire", namespace="elsewhere")
    other["metadata"]["namespace"] = "shared"
    async with serving([other]) as address:
        with pytest.raises(Refused, match="already has the release rt of the namespace elsewhere"):
            await templated(helm, address, "--set", "namespaceOverride=shared")


# --- dashboards in a namespace for all --------------------------------------------------------------------------------


def dashboards(documents: list[Document]) -> list[Document]:
    """Their ConfigMaps."""
    return [d for d in documents if d["kind"] == "ConfigMap" and "-dashboard-" in d["metadata"]["name"]]


def test_dashboards_of_two_namespaces_fit_into_one(helm: Helm) -> None:
    values = {"dashboards": {"enabled": True, "namespace": "monitoring"}}
    found = [
        {
            title(document)
            for document in dashboards(
                read(helm.run("template", "rt", str(CHART), "--namespace", namespace, values=values))
            )
        }
        for namespace in ("chat", "chat-test")
    ]
    assert len(found[0] | found[1]) == 4


async def test_existing_dashboard_keeps_its_name(helm: Helm) -> None:
    held = owned("ConfigMap", "rt-tidewire-dashboard-tidewire")
    held["metadata"]["namespace"] = "monitoring"
    async with serving([held]) as address:
        values = ("--set", "dashboards.enabled=true,dashboards.namespace=monitoring")
        names = {d["metadata"]["name"] for d in dashboards(await templated(helm, address, *values))}
    assert names == {"rt-tidewire-dashboard-tidewire", "rt-tidewire-dashboard-tidewire-pods.chat"}


def test_dashboards_per_release_have_uids_titles_and_files_of_their_own(helm: Helm) -> None:
    found: list[set[str]] = []
    for release in ("rt", "eu"):
        values = {"dashboards": {"enabled": True, "perRelease": True}}
        marks = set()
        for document in dashboards(made(helm, release, values)):
            [(file, text)] = document["data"].items()
            dashboard = json.loads(text)
            assert len(dashboard["uid"]) <= 40
            assert f"chat/{release}-tidewire" in dashboard["title"]
            marks |= {file, dashboard["uid"], dashboard["title"]}
        assert len(marks) == 6
        found.append(marks)
    assert not found[0] & found[1]


# --- in a parent ------------------------------------------------------------------------------------------------------


def parent(folder: Path, dependencies: list[dict[str, str]]) -> Path:
    """A chart that has this one below `charts/`."""
    chart = folder / "platform"
    (chart / "charts").mkdir(parents=True)
    (chart / "charts" / "tidewire").symlink_to(CHART)
    whole = {"apiVersion": "v2", "name": "platform", "version": "0.1.0", "dependencies": dependencies}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return chart


def of_parent(helm: Helm, chart: Path, values: dict[str, Any], release: str = "rt") -> list[Document]:
    """What the parent is made of."""
    done = subprocess.run(
        [helm.program, "template", release, chart, "--namespace", NAMESPACE, "--values", "-"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


@pytest.mark.parametrize("enabled", [True, False])
def test_parent_chart_switches_by_condition(each_helm: Helm, tmp_path: Path, enabled: bool) -> None:
    dependency = {"name": "tidewire", "version": ">=0.0.0-0", "condition": "tidewire.enabled"}
    values = {
        "global": {"imageRegistry": "r.example.com", "imagePullSecrets": ["pull"], "storageClass": "fast"},
        "tidewire": {"enabled": enabled, "podLabels": {"team": "chat"}},
    }
    documents = of_parent(each_helm, parent(tmp_path, [dependency]), values)
    assert bool(documents) is enabled
    if enabled:
        [deployment] = [document for document in documents if document["kind"] == "Deployment"]
        template = deployment["spec"]["template"]
        assert template["metadata"]["labels"]["team"] == "chat"
        for pod in (template["spec"], *(d["spec"] for d in documents if d["kind"] == "Pod")):
            assert pod["containers"][0]["image"].startswith("r.example.com/tidewire:")
            assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_two_aliases_in_one_parent_stay_apart(each_helm: Helm, tmp_path: Path) -> None:
    dependencies = [
        {"name": "tidewire", "version": ">=0.0.0-0", "alias": alias, "condition": f"{alias}.enabled"}
        for alias in ("eu", "us")
    ]
    values = {"eu": {"enabled": True}, "us": {"enabled": True}}
    # Both aliases are parts of the release's name.
    documents = of_parent(each_helm, parent(tmp_path, dependencies), values, release="chat-eu-us")
    check(documents)
    titles = [title(document) for document in documents]
    assert len(titles) == len(set(titles))
    first, second = (d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] == "Deployment")
    assert first != second
