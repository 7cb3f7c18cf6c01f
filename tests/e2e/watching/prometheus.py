"""A real Prometheus that scrapes real nodes, and what it answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.e2e.programs import program
from tests.faults.node import Node
from tests.stores.process import HOST, Server
from tests.support.monitoring import RULES

SCRAPE = "1s"
NAMESPACE, JOB = "chat", "rt-tidewire-ops"
BYSTANDERS = Path(__file__).parent / "bystanders.prom"
"""What others than the service would export of these pods."""
DEADLINE = 20.0


def pod(number: int) -> str:
    """What Kubernetes would call it."""
    return f"rt-tidewire-{number}"


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its points as (time, value)."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [point for point in self.points if math.isfinite(point[1])]


class AskedInVainError(Exception):
    """Prometheus did not take a query; says why."""


class Prometheus(Server):
    """Scrapes nodes, labelled as by a ServiceMonitor, and others' metrics out of a file; has the chart's rules loaded."""

    def __init__(self, nodes: Sequence[Node], bystanders: int) -> None:
        super().__init__("prometheus")
        self._nodes = nodes
        self._bystanders = bystanders
        """Port of `others`."""

    def _prepare(self) -> None:
        own = [
            {"targets": [f"{HOST}:{node.ops_port}"], "labels": {"namespace": NAMESPACE, "pod": pod(number)}}
            for number, node in enumerate(self._nodes)
        ]
        config = {
            "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": [str(file) for file in RULES],
            "scrape_configs": [
                {"job_name": JOB, "static_configs": own},
                {
                    "job_name": "others",
                    "honor_labels": True,
                    "static_configs": [{"targets": [f"{HOST}:{self._bystanders}"]}],
                },
            ],
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def _command_line(self) -> list[str]:
        return [
            str(program("prometheus")),
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
        ]

    async def _answers(self) -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"

    async def now(self, expr: str) -> list[Series]:
        """The answer as of now. Raises AskedInVainError."""
        found = await self._ask("query", query=expr)
        if found["resultType"] == "scalar":
            return [Series({}, [_point(found["result"])])]
        return [Series(one["metric"], [_point(one["value"])]) for one in found["result"]]

    async def over(self, expr: str, start: float, end: float, step: float = 1.0) -> list[Series]:
        """The answer over a time, as a graph asks. Raises AskedInVainError."""
        found = await self._ask("query_range", query=expr, start=f"{start}", end=f"{end}", step=f"{step}")
        return [Series(one["metric"], [_point(point) for point in one["values"]]) for one in found["result"]]

    async def _ask(self, kind: str, **asked: str) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=DEADLINE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(f"{self.url}/api/v1/{kind}", data=asked) as response,
        ):
            body = await response.json()
        if body["status"] != "success":
            raise AskedInVainError(f"{body['error']}: {asked['query']}")
        data: dict[str, Any] = body["data"]
        return data


def _point(point: Sequence[Any]) -> tuple[float, float]:
    return float(point[0]), float(point[1])


async def others() -> web.AppRunner:
    """Serves the bystanders' metrics on any free port; to be cleaned up."""

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=BYSTANDERS.read_text(encoding="utf-8"))

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    return runner
