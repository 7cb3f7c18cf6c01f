"""The chart's rules in the hands of Prometheus' own tool: as files, and as the chart renders them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import absent
from tests.chart.tools import NAME, Document, Helm, Values, of_kind
from tests.support.monitoring import RULES, rules

pytestmark = pytest.mark.chart

SCENES = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
DEADLINE = 120.0
OWN = f'namespace="chat",job="{NAME}-ops"'


def promtool(*arguments: str | Path) -> str:
    """What the tool says; fails the test if it finds a fault."""
    program = shutil.which("promtool")
    if program is None:
        absent("there is no promtool (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(helm: Helm, **values: Any) -> Document:
    """The PrometheusRule with these values below `prometheusRule`, beside a ServiceMonitor."""
    whole: Values = {"prometheusRule": {"enabled": True, **values}, "serviceMonitor": {"enabled": True}}
    return of_kind(helm.template(whole), "PrometheusRule")


def alerts(document: Document) -> dict[str, dict[str, Any]]:
    """Its alerts, by name."""
    return {rule["alert"]: rule for group in document["spec"]["groups"] for rule in group["rules"] if "alert" in rule}


def test_rule_files_are_valid() -> None:
    assert promtool("check", "rules", *RULES).count("SUCCESS") == len(RULES)


@pytest.mark.parametrize("scenes", SCENES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(scenes: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", scenes)


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    fired: set[str] = set()
    quiet: set[str] = set()
    for file in SCENES:
        for scene in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for case in scene["alert_rule_test"]:
                (fired if case["exp_alerts"] else quiet).add(case["alertname"])
    assert fired == quiet == {rule.name for rule in rules() if rule.is_alert}


def test_every_alert_fires_beside_a_release_that_it_is_silent_for() -> None:
    """Two releases in one Prometheus, in two namespaces: the alert of one says nothing of the other."""
    apart: set[str] = set()
    for file in SCENES:
        for scene in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            there = {
                found for one in scene["input_series"] for found in re.findall(r'namespace="(\w+)"', one["series"])
            }
            for case in scene["alert_rule_test"]:
                meant = {alert["exp_labels"].get("namespace") for alert in case["exp_alerts"]}
                if meant and meant < there:
                    apart.add(case["alertname"])
    # There is nothing to tell releases by where there are no metrics; the chart's rule asks for one release's.
    assert {rule.name for rule in rules() if rule.is_alert} - apart == {"TidewireMetricsAbsent"}


def test_promtool_finds_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    scenes = yaml.safe_load(next(file for file in SCENES if file.stem == "broker").read_text(encoding="utf-8"))
    scenes["rule_files"] = [str(file) for file in RULES]
    for case in scenes["tests"][0]["alert_rule_test"]:
        case["exp_alerts"] = []
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(scenes), encoding="utf-8")
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", changed)


def test_rules_select_one_release(each_helm: Helm, tmp_path: Path) -> None:
    document = made(each_helm)
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(document["spec"]), encoding="utf-8")
    assert f"{len(rules())} rules found" in promtool("check", "rules", file)
    whole = {rule.name: rule.expr for rule in rules()}
    scaler = f'namespace="chat",horizontalpodautoscaler=~"(keda-hpa-)?{NAME}"'
    for group in document["spec"]["groups"]:
        for rule in group["rules"]:
            name = rule.get("alert") or rule["record"]
            expected = whole[name].replace('job!=""', OWN).replace('horizontalpodautoscaler=~".*tidewire.*"', scaler)
            expected = expected.replace('deployment=~".*tidewire.*"', f'namespace="chat",deployment="{NAME}"')
            assert rule["expr"] == expected
    assert "job!=" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "selector"),
    [
        ({"podMonitor": {"enabled": True}}, f'namespace="chat",job="chat/{NAME}"'),
        ({}, 'namespace="chat"'),
        ({"prometheusRule": {"enabled": True, "selector": 'job="mine"'}}, 'job="mine"'),
    ],
    ids=["pod monitor", "no monitor", "of one's own"],
)
def test_rules_select_the_series_of_their_monitor(helm: Helm, values: Values, selector: str) -> None:
    document = of_kind(helm.template({"prometheusRule": {"enabled": True}, **values}), "PrometheusRule")
    assert alerts(document)["TidewireMetricsAbsent"]["expr"] == f"absent(tidewire_ready{{{selector}}}) > 0"


def test_values_change_an_alert(helm: Helm, tmp_path: Path) -> None:
    document = made(
        helm,
        runbookBaseUrl="https://runbooks.example.com/",
        alertLabels={"team": "chat"},
        alerts={
            "TidewirePodSkew": {"threshold": 3.5, "for": "1h", "severity": "info"},
            "TidewireAutoscalerAtMax": {"threshold": 0.9},
            "TidewireProbeSilent": {"threshold": 1_200_000},
            "TidewireNoTraffic": {"enabled": False},
        },
    )
    found = alerts(document)
    skew = found["TidewirePodSkew"]
    assert skew["expr"].endswith(" > 3.5")
    assert (skew["for"], skew["labels"]) == ("1h", {"severity": "info", "team": "chat"})
    assert skew["annotations"]["runbook_url"] == "https://runbooks.example.com/TidewirePodSkew.md"
    assert found["TidewireAutoscalerAtMax"]["expr"].endswith(") >= 0.9")
    assert "TidewireNoTraffic" not in found
    assert len(found) == len([rule for rule in rules() if rule.is_alert]) - 1
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(document["spec"]), encoding="utf-8")
    promtool("check", "rules", file)


def test_every_alert_can_have_another_threshold(helm: Helm) -> None:
    names = [rule.name for rule in rules() if rule.is_alert]
    found = alerts(made(helm, alerts={name: {"threshold": 0.4375} for name in names}))
    assert all(re.search(r" (>|>=) 0\.4375$", found[name]["expr"]) for name in names)


def test_documented_command_writes_a_rule_file(helm: Helm, tmp_path: Path) -> None:
    """The sed of docs/operate/alerts.md, over what Helm prints."""
    page = (Path(__file__).parents[2] / "docs" / "operate" / "alerts.md").read_text(encoding="utf-8")
    [script] = re.findall(r"--show-only templates/prometheusrule\.yaml \| sed -n '([^']+)'", page)
    chart = str(RULES[0].parents[1])
    shown = helm.run(
        "template",
        "rt",
        chart,
        "--show-only",
        "templates/prometheusrule.yaml",
        values={"prometheusRule": {"enabled": True}},
    )
    done = subprocess.run(
        ["sed", "-n", script], input=shown, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    file = tmp_path / "rules.yaml"
    file.write_text(done.stdout, encoding="utf-8")
    assert f"{len(rules())} rules found" in promtool("check", "rules", file)
