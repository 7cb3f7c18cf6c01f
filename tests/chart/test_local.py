"""k8s/local fits together, and scripts/kind.sh installs just that and touches no other cluster. No cluster is started here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import absent
from tests.chart.tools import CHART, ROOT, Document, Helm

pytestmark = pytest.mark.chart

LOCAL = ROOT / "k8s" / "local"
SCRIPT = ROOT / "scripts" / "kind.sh"
CONTEXT = "kind-tidewire"
DEADLINE = 60.0
STUB = """\
#!/bin/sh
line=$(basename "$0")
for argument in "$@"; do line="$line '$argument'"; done
printf '%s\n' "$line" >>"$CALLS" # at once: the two ends of a pipe call at the same time
case "$(basename "$0") $1 $2" in
    "docker image inspect") echo sha256:0123 ;;
    "kind get clusters") echo "$CLUSTERS" ;;
esac
"""


def _documents(name: str) -> list[Document]:
    return [one for one in yaml.safe_load_all((LOCAL / name).read_text(encoding="utf-8")) if one]


def _of(name: str, kind: str) -> Document:
    [found] = [document for document in _documents(name) if document["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def release(helm: Helm) -> list[Document]:
    """What scripts/kind.sh installs with Helm."""
    text = helm.run(
        "template", "tidewire", str(CHART), "--namespace", "default", "--values", str(LOCAL / "values.yaml")
    )
    return [document for document in yaml.safe_load_all(text) if document]


def test_this_machines_ports_lead_to_services(release: list[Document]) -> None:
    services = [*release, *_documents("prometheus.yaml"), *_documents("grafana.yaml")]
    ports = {
        port["nodePort"]
        for document in services
        if document["kind"] == "Service"
        for port in document["spec"]["ports"]
        if "nodePort" in port
    }
    [first, *_] = _of("kind.yaml", "Cluster")["nodes"]
    assert {mapping["containerPort"] for mapping in first["extraPortMappings"]} == ports
    # Nobody logs in: nobody else's machine may reach them.
    assert {mapping["listenAddress"] for mapping in first["extraPortMappings"]} == {"127.0.0.1"}


def test_prometheus_finds_the_pods_and_the_rules(release: list[Document], tmp_path: Path) -> None:
    config = yaml.safe_load(_of("prometheus.yaml", "ConfigMap")["data"]["prometheus.yml"])
    [discovery] = config["scrape_configs"][0]["dns_sd_configs"]
    [ops] = [d for d in release if d["kind"] == "Service" and d["metadata"]["name"].endswith("-ops")]
    assert discovery["names"] == [f"{ops['metadata']['name']}.{ops['metadata']['namespace']}.svc.cluster.local"]
    assert discovery["port"] == ops["spec"]["ports"][0]["port"]
    [_, rules] = _of("prometheus.yaml", "Deployment")["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"]
    assert {item["key"] for item in rules["configMap"]["items"]} == {file.name for file in (CHART / "rules").glob("*")}
    promtool = shutil.which("promtool")
    if promtool is None:
        absent("there is no promtool")
    config["rule_files"] = [str(CHART / "rules" / "*.yaml")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    said = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, timeout=DEADLINE
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_grafana_asks_prometheus_and_shows_the_charts_dashboards() -> None:
    data = _of("grafana.yaml", "ConfigMap")["data"]
    [source] = yaml.safe_load(data["datasources.yaml"])["datasources"]
    service = _of("prometheus.yaml", "Service")
    assert source["url"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    [provider] = yaml.safe_load(data["dashboards.yaml"])["providers"]
    spec = _of("grafana.yaml", "Deployment")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert provider["options"]["path"] == mounts["dashboards"]
    [volume] = [volume for volume in spec["volumes"] if volume["name"] == "provisioning"]
    assert {item["key"] for item in volume["configMap"]["items"]} == set(data)


def _carried_out(tmp_path: Path, what: str, clusters: str = "") -> list[list[str]]:
    """The programs that the script calls, in its order; none of them is real."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "kind", "kubectl", "helm"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    calls = tmp_path / "calls"
    done = subprocess.run(
        [SCRIPT, what],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), "CLUSTERS": clusters},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in calls.read_text().splitlines()]


def _values(call: list[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(call) if name == flag]


def test_up_installs_what_is_here_and_touches_no_other_cluster(helm: Helm, tmp_path: Path) -> None:
    calls = _carried_out(tmp_path, "up")
    for call in calls:
        match call:
            case ["kubectl", "create", "configmap", _, source, "--dry-run=client", *_]:
                assert any((ROOT / source.removeprefix("--from-file=")).iterdir())
            case ["kubectl", *_]:
                assert call[1:3] == ["--context", CONTEXT]
            case ["helm", *_]:
                assert _values(call, "--kube-context") == [CONTEXT]
        for flag in ("--filename", "--values", "--config"):
            assert all(value == "-" or (ROOT / value).is_file() for value in _values(call, flag)), call
    order = [f"{call[0]} {next(word for word in call[1:] if word not in ('--context', CONTEXT))}" for call in calls]
    built, made, loaded, installed, tested = (
        order.index(step) for step in ("docker build", "kind create", "kind load", "helm upgrade", "helm test")
    )
    assert built < made < loaded < installed < tested == len(order) - 1
    # Every ConfigMap that a pod takes is there before the pods.
    named = {name for file in ("prometheus.yaml", "grafana.yaml") for name in _configmaps(_documents(file))}
    there = {
        document["metadata"]["name"] for file in ("prometheus.yaml", "grafana.yaml") for document in _documents(file)
    }
    assert named <= there | {call[3] for call in calls if call[:3] == ["kubectl", "create", "configmap"]}
    # And the chart takes what it is given.
    upgrade = calls[installed]
    arguments = [
        argument
        for flag in ("--values", "--set-string")
        for value in _values(upgrade, flag)
        for argument in (flag, value)
    ]
    [deployment] = [
        document
        for document in yaml.safe_load_all(helm.run("template", "tidewire", str(ROOT / upgrade[4]), *arguments))
        if document and document["kind"] == "Deployment"
    ]
    assert deployment["spec"]["template"]["metadata"]["annotations"]["image"] == "sha256:0123"
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "tidewire:local"
    assert [call[-1] for call in calls if call[:3] == ["kind", "load", "docker-image"]] == [container["image"]]


def _configmaps(documents: list[Document]) -> set[str]:
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(named := value.get("configMap"), dict):
                found.add(named["name"])
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(documents)
    return found


def test_up_keeps_a_cluster_that_is_there(tmp_path: Path) -> None:
    calls = _carried_out(tmp_path, "up", "tidewire")
    assert ["kind", "create"] not in [call[:2] for call in calls]
    assert ["helm", "test"] in [call[:2] for call in calls]


def test_down_removes_the_one_cluster(tmp_path: Path) -> None:
    assert _carried_out(tmp_path, "down")[-1] == ["kind", "delete", "cluster", "--name", "tidewire"]


def test_up_without_docker_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [shutil.which("bash") or "bash", SCRIPT, "up"],
        env={"PATH": _only_tools(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.search(r"needs docker on PATH", done.stderr)


def _only_tools(folder: Path) -> str:
    for name in ("bash", "dirname"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return str(folder)
