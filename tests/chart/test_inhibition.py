"""The inhibition rules of k8s/alertmanager in a real Alertmanager: what it keeps silent about, and what not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.chart.conftest import absent
from tests.chart.tools import ROOT
from tests.stores.process import HOST, Server, until
from tests.support.monitoring import groups, rules

pytestmark = pytest.mark.chart

FILE = ROOT / "k8s" / "alertmanager" / "inhibit-rules.yaml"
DEADLINE = 30.0
ALERTS = {rule["alert"]: rule["labels"]["severity"] for group in groups() for rule in group["rules"] if "alert" in rule}


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        absent(f"there is no {name} (Debian: apt-get install prometheus-alertmanager)")
    return path


def configuration() -> dict[str, Any]:
    """The least configuration that these rules can be part of."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}], **found}


class Alertmanager(Server):
    """A real one, which nobody is notified by."""

    def __init__(self) -> None:
        super().__init__("alertmanager")

    def _prepare(self) -> None:
        (self.folder / "alertmanager.yml").write_text(json.dumps(configuration()))  # JSON is YAML

    def _command_line(self) -> list[str]:
        return [
            program("prometheus-alertmanager"),
            f"--config.file={self.folder}/alertmanager.yml",
            f"--storage.path={self.folder}/data",
            f"--web.listen-address={HOST}:{self.port}",
            "--cluster.listen-address=",
        ]

    async def _answers(self) -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://{HOST}:{self.port}/-/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def states(self, *alerts: Mapping[str, str]) -> dict[tuple[str, str], str]:
        """Tells it of alerts that fire; their states by name and namespace, once it has judged all."""
        ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        body = [{"labels": {"severity": ALERTS[one["alertname"]], **one}, "endsAt": ends} for one in alerts]
        url = f"http://{HOST}:{self.port}/api/v2/alerts"
        found: dict[tuple[str, str], str] = {}
        async with aiohttp.ClientSession() as http:
            async with http.post(url, json=body) as response:
                assert response.status == 200, await response.text()

            async def judged() -> bool:
                async with http.get(url) as response:
                    for one in await response.json():
                        key = (one["labels"]["alertname"], one["labels"].get("namespace", ""))
                        found[key] = one["status"]["state"]
                return len(found) == len(alerts) and "unprocessed" not in found.values()

            await until(judged, "Alertmanager judges the alerts", within=DEADLINE)
        return found


def one(name: str, namespace: str = "chat", **labels: str) -> dict[str, str]:
    return {"alertname": f"Tidewire{name}", "namespace": namespace, "job": "rt", **labels}


def test_amtool_takes_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(json.dumps(configuration()), encoding="utf-8")
    done = subprocess.run(
        [program("amtool"), "check-config", str(file)], capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(configuration()['inhibit_rules'])} inhibit rules" in done.stdout


def test_rules_name_alerts_that_there_are() -> None:
    names = {rule.name for rule in rules() if rule.is_alert}
    for rule in configuration()["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            found = re.fullmatch(r'alertname(=|=~|!=)"(.+)"', matcher)
            assert found is not None, matcher
            prefix, _, rest = found[2].partition("(")
            meant = [prefix + part for part in rest.removesuffix(")").split("|")] if rest else [found[2]]
            assert all(any(re.fullmatch(name, alert) for alert in names) for name in meant), matcher


async def test_broker_outage_is_told_once_in_its_release_alone() -> None:
    followers = ("ProbeBurnsFast", "NoTraffic", "BrokerLag", "HandshakeFailures", "PodNotReady")
    async with Alertmanager() as server:
        states = await server.states(
            one("BrokerUnavailable"),
            *(one(name, namespace) for name in followers for namespace in ("chat", "shop")),
            one("EventsLost"),
            {"alertname": "TidewireRolloutStuck", "namespace": "chat", "deployment": "rt-tidewire"},
        )
    assert states["TidewireBrokerUnavailable", "chat"] == "active"
    assert states["TidewireEventsLost", "chat"] == "active", "lost events are news"
    assert states["TidewireRolloutStuck", "chat"] == "suppressed"
    for name in followers:
        assert states[f"Tidewire{name}", "chat"] == "suppressed"
        assert states[f"Tidewire{name}", "shop"] == "active"


async def test_pod_that_crashes_is_told_once_and_another_one_apart() -> None:
    async with Alertmanager() as server:
        states = await server.states(
            one("PodCrashLooping", pod="rt-a"), one("PodDown", pod="rt-a"), one("PodDown", "shop", pod="rt-a")
        )
    assert states["TidewirePodDown", "chat"] == "suppressed"
    assert states["TidewirePodDown", "shop"] == "active"


async def test_hook_without_answers_is_told_once_and_another_endpoint_apart() -> None:
    async with Alertmanager() as server:
        states = await server.states(
            one("HookFailing", endpoint="moderation"),
            one("HookBreakerOpen", endpoint="moderation", pod="rt-a"),
            one("HookBreakerOpen", "shop", endpoint="moderation", pod="rt-a"),
        )
    assert states["TidewireHookFailing", "chat"] == "active"
    assert states["TidewireHookBreakerOpen", "chat"] == "suppressed"
    assert states["TidewireHookBreakerOpen", "shop"] == "active"


async def test_missing_metrics_are_told_alone() -> None:
    async with Alertmanager() as server:
        states = await server.states(one("MetricsAbsent"), one("PodDown", pod="rt-a"), one("LoopLag", "shop"))
    assert states == {
        ("TidewireMetricsAbsent", "chat"): "active",
        ("TidewirePodDown", "chat"): "suppressed",
        ("TidewireLoopLag", "shop"): "active",
    }
