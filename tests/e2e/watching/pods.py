"""Pods that come and go, before a Prometheus that scrapes as in a cluster: every 15 or 30 s, and only pods that are listed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.chart.tools import of_kind
from tests.e2e.programs import helm
from tests.e2e.watching.prometheus import Prometheus
from tests.stores.process import HOST

JOB = "rt-tidewire-ops"


@dataclass(frozen=True, slots=True)
class Target:
    """A pod that service discovery lists. Each scene is a namespace of its own."""

    namespace: str
    pod: str
    port: int


class Cluster(Prometheus):
    """Scrapes at an interval as clusters have it, whoever is listed at the time, and plays the chart's rules."""

    def __init__(self, interval: int, objects: int, alerts: Mapping[str, Any]) -> None:
        """`objects` is the port of `ObjectMetrics`; `alerts` is what `prometheusRule.alerts` says."""
        super().__init__([], objects)
        self.interval = interval
        self._objects = objects
        self._alerts = alerts
        self._targets: list[Target] = []

    def _prepare(self) -> None:
        every = f"{self.interval}s"
        values = {"prometheusRule": {"enabled": True, "selector": 'job!=""', "alerts": dict(self._alerts)}}
        rules = of_kind(helm().template(values), "PrometheusRule")["spec"]
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": "10s", "evaluation_interval": every},
            "rule_files": [str(self.folder / "rules.yaml")],
            "scrape_configs": [
                {"job_name": JOB, "file_sd_configs": [{"files": [str(self._listing)]}]},
                {
                    "job_name": "kube-state-metrics",
                    "honor_labels": True,
                    "static_configs": [{"targets": [f"{HOST}:{self._objects}"]}],
                },
            ],
        }
        self._write()
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    @property
    def _listing(self) -> Path:
        return self.folder / "targets.json"

    def _write(self) -> None:
        listed = [
            {"targets": [f"{HOST}:{one.port}"], "labels": {"namespace": one.namespace, "pod": one.pod}}
            for one in self._targets
        ]
        fresh = self._listing.with_suffix(".new")
        fresh.write_text(json.dumps(listed))
        fresh.replace(self._listing)

    def list_pod(self, *targets: Target) -> None:
        """Pods have been given an address."""
        self._targets += targets
        self._write()

    def delete_pod(self, target: Target) -> None:
        """A pod is gone from the cluster, and from service discovery."""
        self._targets.remove(target)
        self._write()

    async def value(self, expr: str) -> float:
        """The sum of an answer; 0 if it is empty."""
        return sum(series.points[0][1] for series in await self.now(expr))

    async def firings(self, start: float, end: float) -> dict[tuple[str, str], tuple[float, float]]:
        """When each alert fired first and last, in seconds from `start`, by its name and namespace."""
        found: dict[tuple[str, str], tuple[float, float]] = {}
        for series in await self.over('ALERTS{alertstate="firing"}', start, end):
            key = (series.labels["alertname"], series.labels.get("namespace", ""))
            first, last = series.points[0][0] - start, series.points[-1][0] - start
            known = found.get(key, (first, last))
            found[key] = (min(first, known[0]), max(last, known[1]))
        return found


class ObjectMetrics:
    """What kube-state-metrics would say of one Deployment, as a test tells it."""

    def __init__(self) -> None:
        self.samples: dict[str, float] = {}
        """By the whole series."""
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Serves them on any free port, which it returns."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        """Serves no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="".join(f"{name} {value:g}\n" for name, value in self.samples.items()))


async def answers(port: int) -> bool:
    """Whether an ops listener is open."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://{HOST}:{port}/healthz") as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


def table(found: Mapping[tuple[str, str], tuple[float, float]], names: Sequence[str]) -> str:
    """Firings as lines: for who reads the output of the test."""
    lines = [f"  {'alert':32} {'scene':10} {'from':>6} {'to':>6}"]
    for (alert, namespace), (first, last) in sorted(found.items(), key=lambda item: item[1]):
        if namespace in names:
            lines.append(f"  {alert:32} {namespace:10} {first:5.0f}s {last:5.0f}s")
    return "\n".join(lines)
