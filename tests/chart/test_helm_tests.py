"""What `helm test` runs in a cluster passes against a real service started as the chart renders it, and fails when it should."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.app import Service, running
from service.cli.check import load_all
from tests.chart.conftest import rendered
from tests.chart.pod_view import PodView, lay
from tests.chart.tools import CHART, NAME, Document, Helm, of_kind

pytestmark = pytest.mark.chart

DEADLINE = 60.0
ADDRESSES = {"PUBLIC": f"http://{NAME}:80", "OPS": f"http://{NAME}-ops:9090"}


@pytest_asyncio.fixture
async def pod(helm: Helm, tmp_path: Path) -> AsyncIterator[tuple[PodView, dict[str, str]]]:
    """A service started with what the chart's defaults render, and where it listens."""
    view = lay(rendered(helm, "defaults"), tmp_path)
    ports = {"TIDEWIRE_HOST": "127.0.0.1", "TIDEWIRE_OPS_HOST": "127.0.0.1"}
    free = {"TIDEWIRE_PORT": "0", "TIDEWIRE_OPS_PORT": "0"}
    settings, contract = load_all(view.config, {**view.environ, **ports, **free})
    async with running(Service(settings, contract)) as (public, ops):
        yield view, {"PUBLIC": f"http://127.0.0.1:{public}", "OPS": f"http://127.0.0.1:{ops}"}


async def carried_out(
    document: Document, view: PodView, addresses: Mapping[str, str], others: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs a test's container here: how it ended, and what it said."""
    [container] = document["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert ADDRESSES.items() <= environ.items()
    secret = view.root / "etc/tidewire/secrets/auth-secret"
    program, script, *arguments = container["command"]
    assert (program, script) == ("python3", "/test/test.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHART / "files" / "test.py"),
        *arguments,
        env={**environ, **addresses, "SECRET_FILE": str(secret), **(others or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("name", ["health", "publish", "resume"])
async def test_helm_test_of_working_service_passes(helm: Helm, pod: tuple[PodView, dict[str, str]], name: str) -> None:
    document = of_kind(rendered(helm, "defaults"), "Pod", f"-test-{name}")
    assert await carried_out(document, *pod) == (0, f"{name}: good\n")


@pytest.mark.parametrize(
    ("name", "others", "told"),
    [
        ("health", {"OPS": "http://127.0.0.1:1"}, "127.0.0.1"),
        ("publish", {"AUDIENCE": "others"}, "refused"),
        ("publish", {"TYPE": "chat.unknown"}, "refused"),
        ("resume", {"TYPE": "chat.typing", "DATA": "{}"}, "did not resume"),
    ],
    ids=["nobody there", "wrong audience", "unknown type", "nothing kept"],
)
async def test_helm_test_fails_with_its_reason(
    helm: Helm, pod: tuple[PodView, dict[str, str]], name: str, others: dict[str, str], told: str
) -> None:
    document = of_kind(rendered(helm, "defaults"), "Pod", f"-test-{name}")
    status, said = await carried_out(document, *pod, others)
    assert status != 0
    assert told in said


@pytest.mark.parametrize(
    ("values", "tests"),
    [
        ({}, {"health", "publish", "resume"}),
        ({"contract": {"text": "channels: {}"}}, {"health"}),
        (
            {"contract": {"text": "channels: {}"}, "tests": {"channel": "a:b", "type": "a.b"}},
            {"health", "publish", "resume"},
        ),
        ({"settings": {"auth": {"anonymous": True}}}, {"health"}),
        ({"tests": {"enabled": False}}, set()),
    ],
)
def test_helm_tests_that_cannot_work_are_left_out(helm: Helm, values: dict[str, Any], tests: set[str]) -> None:
    pods = [document["metadata"]["name"] for document in helm.template(values) if document["kind"] == "Pod"]
    assert {name.rpartition("-")[2] for name in pods} == tests
