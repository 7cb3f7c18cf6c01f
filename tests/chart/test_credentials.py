"""Credentials that the chart makes outlive upgrades: new ones would lock every user and backend out."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.chart.tools import CHART, NAME, NAMESPACE, RELEASE, Helm, read

pytestmark = pytest.mark.chart

DEADLINE = 60.0
HELD = {"auth-secret": "the secret that was made when this was installed", "api-key": "the-api-key-of-that-day-0123"}
KINDS = {
    "v1": ("Secret", "ConfigMap", "Service", "ServiceAccount", "Pod"),
    "apps/v1": ("Deployment",),
    "policy/v1": ("PodDisruptionBudget",),
}


_OWNED = {
    "name": NAME,
    "namespace": NAMESPACE,
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE},
}
"""As Helm leaves what it has made."""


def _resources(group: str) -> dict[str, object]:
    kinds = [
        {"name": f"{kind.lower()}s", "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get"]}
        for kind in KINDS[group]
    ]
    return {"kind": "APIResourceList", "groupVersion": group, "resources": kinds}


def _group(group: str) -> dict[str, object]:
    name, _, version = group.partition("/")
    versions = {"groupVersion": group, "version": version}
    return {"name": name, "versions": [versions], "preferredVersion": versions}


@asynccontextmanager
async def cluster(held: dict[str, str]) -> AsyncIterator[str]:
    """As much of a cluster's API as Helm needs to look a Secret up. `held`: what the release's Secret holds; nothing: none."""
    data = {name: base64.b64encode(text.encode()).decode() for name, text in held.items()}
    groups = [_group(group) for group in KINDS if "/" in group]
    documents: dict[str, dict[str, object]] = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        **{f"/api{'s' if '/' in group else ''}/{group}": _resources(group) for group in KINDS},
    }
    if held:
        secret: dict[str, object] = {"apiVersion": "v1", "kind": "Secret", "metadata": _OWNED, "data": data}
        documents[f"/api/v1/namespaces/{NAMESPACE}/secrets/{NAME}"] = secret

    async def answer(request: web.Request) -> web.Response:
        if request.path in documents:
            return web.json_response(documents[request.path])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        return web.json_response(missing, status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def credentials(helm: Helm, address: str) -> dict[str, str]:
    """What the Secret would hold after an install or an upgrade there."""
    process = await asyncio.create_subprocess_exec(
        *(helm.program, "template", RELEASE, CHART, "--namespace", NAMESPACE, "--show-only", "templates/secret.yaml"),
        *("--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address),
        env={**os.environ, "KUBECONFIG": os.devnull},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        said, told = await process.communicate()
    assert process.returncode == 0, told.decode()
    [secret] = read(said.decode())
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    return {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}


async def test_an_upgrade_keeps_what_there_is(each_helm: Helm) -> None:
    async with cluster(HELD) as address:
        assert await credentials(each_helm, address) == HELD


async def test_an_upgrade_adds_what_is_missing(each_helm: Helm) -> None:
    held = {"auth-secret": HELD["auth-secret"]}
    async with cluster(held) as address:
        found = await credentials(each_helm, address)
    assert found.pop("api-key") != HELD["api-key"]
    assert found == held


async def test_an_install_makes_new_ones(each_helm: Helm) -> None:
    async with cluster({}) as address:
        first, second = await credentials(each_helm, address), await credentials(each_helm, address)
    assert first.keys() == second.keys() == HELD.keys()
    assert not set(first.values()) & set(second.values())
    assert all(len(text) >= 64 for text in first.values())
