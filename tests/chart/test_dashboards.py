"""The dashboards as Grafana's own types have them, and as the chart hands them to Grafana's sidecar."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.conftest import absent
from tests.chart.test_custom_resources import COMPILER, DEADLINE, FOLDER, OPTIONS
from tests.chart.tools import NAME, WHOLE, Document, Helm
from tests.e2e.watching.expressions import DASHBOARDS, dashboards

pytestmark = pytest.mark.chart

GRAFANAS = ("10", "12") if WHOLE else ("12",)
KINDS = {"row": "Row", "timeseries": "Graph", "stat": "Stat"}


def faults(whole: list[dict[str, Any]], folder: Path) -> list[str]:
    """What Grafana's types have against dashboards: for each fault whose it is and the compiler's words."""
    if shutil.which("node") is None or not COMPILER.exists():
        absent("there is no Node.js, or no types of Grafana are")
    lines, titles = ['import type * as grafana from "./dashboards.mjs";'], [""]

    def judge(kind: str, title: str, value: Any) -> None:
        for version in GRAFANAS:
            lines.append(f"export const d{len(lines)}: grafana.{kind}{version} = {json.dumps(value)};")
            titles.append(f"{title} ({version})")

    for dashboard in whole:
        judge("Whole", dashboard["uid"], {name: value for name, value in dashboard.items() if name != "panels"})
        for panel in dashboard["panels"]:
            judge(KINDS[panel["type"]], f"{dashboard['uid']} {panel['title']}", panel)
    shutil.copy(FOLDER / "dashboards.mts", folder)
    (folder / "documents.mts").write_text("\n".join(lines), encoding="utf-8")
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    done = subprocess.run(
        ["node", COMPILER, *OPTIONS, "documents.mts"], capture_output=True, text=True, timeout=DEADLINE, cwd=folder
    )
    found = re.findall(r"^documents\.mts\((\d+),\d+\): (.*)", done.stdout, re.MULTILINE)
    assert bool(found) == bool(done.returncode) == bool(done.stdout), done.stdout
    return [f"{titles[int(line) - 1]}: {told}" for line, told in found]


def test_grafana_knows_every_key(tmp_path: Path) -> None:
    good = list(dashboards())
    # One of each kind has a key or a word too many, so that a compiler that lets everything through is noticed.
    spoilt = copy.deepcopy(good[0])
    spoilt["uid"] = "spoilt"
    spoilt["colour"] = "blue"
    row = next(panel for panel in spoilt["panels"] if panel["type"] == "row")
    graph = next(panel for panel in spoilt["panels"] if panel["type"] == "timeseries")
    row["collapse"] = False
    graph["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "lines"
    graph["options"]["legend"]["placing"] = "bottom"
    graph["targets"][0]["expression"] = "up"
    spoilt["panels"] = [row, graph]
    found = faults([*good, spoilt], tmp_path)
    assert all(told.startswith("spoilt") for told in found), found
    for version in GRAFANAS:
        assert any(f"spoilt ({version})" in told and "colour" in told for told in found)
        assert any(row["title"] in told and f"({version})" in told and "collapse" in told for told in found)
        own = [told for told in found if graph["title"] in told and f"({version})" in told]
        assert any("lines" in told for told in own)
        assert any("placing" in told for told in own)
        assert any("expression" in told for told in own)


def config_maps(helm: Helm, **values: Any) -> dict[str, Document]:
    """The dashboards' ConfigMaps, by the dashboard's address."""
    documents = helm.template({"dashboards": {"enabled": True, **values}})
    prefix = f"{NAME}-dashboard-"
    found = [d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith(prefix)]
    return {document["metadata"]["name"].removeprefix(prefix): document for document in found}


def test_config_map_holds_the_dashboard_file(each_helm: Helm) -> None:
    found = config_maps(each_helm)
    assert set(found) == {file.stem for file in DASHBOARDS}
    for file in DASHBOARDS:
        [(name, text)] = found[file.stem]["data"].items()
        assert name == file.name
        assert json.loads(text) == json.loads(file.read_text(encoding="utf-8"))
        assert found[file.stem]["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert "annotations" not in found[file.stem]["metadata"]


def test_dashboards_are_where_the_sidecar_looks(helm: Helm) -> None:
    for document in config_maps(
        helm,
        folder="Realtime",
        namespace="monitoring",
        labels={"dashboards": "yes"},
        annotations={"example.com/a": "b"},
    ).values():
        metadata = document["metadata"]
        assert metadata["namespace"] == "monitoring"
        assert metadata["annotations"] == {"grafana_folder": "Realtime", "example.com/a": "b"}
        assert metadata["labels"]["dashboards"] == "yes"
        assert metadata["labels"]["app.kubernetes.io/instance"] == "rt"


def test_dashboards_are_off_by_default(helm: Helm) -> None:
    assert not [d for d in helm.template({}) if "dashboard" in d["metadata"]["name"]]
