"""The load test of k8s/loadtest passes on a service that is well, through a drain too, and fails on one that is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import yaml

from tests.chart.tools import ROOT
from tests.e2e.front import Front, rendered, settings_of
from tests.e2e.haproxy import HAProxy
from tests.e2e.programs import need
from tests.e2e.stand import nodes, running
from tests.faults.node import Node
from tests.faults.stage import seconds_until
from tests.faults.tokens import API_KEYS, SECRET
from tests.stores.process import HOST
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.e2e

LOADTEST = ROOT / "k8s" / "loadtest"
CLIENTS = 40
SHORT = {"CLIENTS": str(CLIENTS), "CHANNELS": "4", "RATE": "20", "RAMP": "2", "HOLD": "6", "DOWN": "1", "P95": "2000"}
RUN = 60.0
THRESHOLDS_CROSSED = 99
"""k6's exit status."""
COME = 30.0


class Run:
    """scripts/loadtest.sh, as `make loadtest` calls it."""

    def __init__(self, port: int, api: int, folder: Path, **more: str) -> None:
        self.summary = folder / "summary.json"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("K6_")},
            "URL": f"ws://{HOST}:{port}/ws",
            "API": f"http://{HOST}:{api}",
            "AUTH_SECRET": SECRET,
            "API_KEY": API_KEYS["red"],
            "TENANT": "red",
            "CHANNEL": "hall:load",
            "TYPE": "talk.line",
            "SUMMARY": str(self.summary),
            **SHORT,
            **more,
        }

    async def start(self) -> asyncio.subprocess.Process:
        """Begins."""
        need("k6")
        return await asyncio.create_subprocess_exec(
            ROOT / "scripts" / "loadtest.sh",
            env=self.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def ended(self, process: asyncio.subprocess.Process) -> tuple[int, str]:
        """Its exit status, and its verdict."""
        try:
            async with asyncio.timeout(RUN):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        text = said.decode()
        print(text[-2000:])
        # k6 itself has a word more.
        verdict = next(
            (line for line in reversed(text.splitlines()) if line.startswith(("passed", "FAILED"))), text[-500:]
        )
        return process.returncode, verdict

    async def to_its_end(self) -> tuple[int, str]:
        """All of it."""
        return await self.ended(await self.start())

    def count(self, name: str) -> int:
        """A counter of the summary."""
        metrics: Mapping[str, Any] = json.loads(self.summary.read_text())["metrics"]
        return int(metrics[name]["values"]["count"]) if name in metrics else 0


async def _has(node: Node, clients: int) -> bool:
    return (await node.metrics()).get("connections", 0) >= clients


async def test_passes_through_a_drain_and_counts_what_came(tmp_path: Path) -> None:
    need("haproxy", "k6")
    preset = "ingress jcmoraisjr"
    documents = rendered(preset, 3600, 25.0)
    told = {"PROXY__HOPS": str(settings_of(documents)["proxy"]["hops"])}
    async with RedisServer() as redis, nodes(redis.url, told, told) as (going, staying):
        front = Front(preset, documents, [going.port, staying.port])
        async with running([HAProxy([front])]) as [proxy]:
            run = Run(front.port, staying.port, tmp_path)
            process = await run.start()
            try:
                assert await seconds_until(lambda: _has(going, CLIENTS // 4), monotonic(), COME) is not None
                here = (await going.metrics())["connections"]
                await proxy.lead(front, [staying.port])
                going.signal(signal.SIGTERM)
                await going.wait(COME)
            finally:
                status, verdict = await run.ended(process)
    assert (status, verdict) == (0, "passed")
    published, received = run.count("events_published"), run.count("events_received")
    assert published > 100
    assert received == published * CLIENTS // 4  # each goes to the clients of one channel
    assert run.count("reconnects_told") >= here
    assert run.count("reconnects") == run.count("reconnects_told")
    assert run.count("resumed") > 0
    assert run.count("gaps") == run.count("errors") == 0


async def test_tickets_serve_as_well_as_tokens(tmp_path: Path) -> None:
    async with RedisServer() as redis, nodes(redis.url, {}) as [node]:
        run = Run(node.port, node.port, tmp_path, TICKETS="1", CLIENTS="8", HOLD="2")
        assert (await run.to_its_end())[0] == 0
    assert run.count("events_received") == run.count("events_published") * 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"P95": "0"}, "FAILED: delivery p(95)<0"),
        ({"AUTH_SECRET": "another secret, long enough for HS256 as well"}, "connect_failures rate<0.01"),
        ({"API_KEY": "no-such-api-key-0123456789"}, "publish_failures rate<0.01"),
        ({"CHANNEL": "nowhere:load"}, "errors count==0"),
    ],
    ids=["late", "no clients", "no publishes", "no channel"],
)
async def test_load_test_fails_with_its_reason(more: dict[str, str], told: str, tmp_path: Path) -> None:
    async with RedisServer() as redis, nodes(redis.url, {}) as [node]:
        status, verdict = await Run(
            node.port, node.port, tmp_path, **{"CLIENTS": "4", "HOLD": "2", **more}
        ).to_its_end()
    assert status == THRESHOLDS_CROSSED
    assert told in verdict


def test_job_environment_matches_the_script() -> None:
    script = (LOADTEST / "load.js").read_text(encoding="utf-8")
    read = set(re.findall(r"(?:text|number)\('([A-Z0-9_]+)'|__ENV\.([A-Z0-9_]+)", script))
    known = {name for pair in read for name in pair if name}
    job = yaml.safe_load((LOADTEST / "job.yaml").read_text(encoding="utf-8"))
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert {entry["name"] for entry in container["env"]} <= known
    # What is pinned here is what runs there.
    [version] = re.findall(r"^k6==(\S+)", (ROOT / "requirements" / "k6.lock").read_text(), re.MULTILINE)
    assert container["image"] == f"grafana/k6:{version}"
