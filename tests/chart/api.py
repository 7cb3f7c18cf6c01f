"""As much of a cluster's API as Helm needs to look objects up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.chart.tools import CHART, NAMESPACE, RELEASE, Document, Helm, Refused, read

DEADLINE = 60.0
KINDS = {
    "v1": ("Secret", "ConfigMap", "Service", "ServiceAccount", "Pod"),
    "apps/v1": ("Deployment",),
    "policy/v1": ("PodDisruptionBudget",),
}


def owned(kind: str, name: str, *, release: str = RELEASE, namespace: str = NAMESPACE, **fields: Any) -> Document:
    """An object as Helm leaves what it has made."""
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": namespace},
    }
    [group] = [group for group, kinds in KINDS.items() if kind in kinds]
    return {"apiVersion": group, "kind": kind, "metadata": metadata, **fields}


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


def _path(document: Document) -> str:
    group, metadata = document["apiVersion"], document["metadata"]
    root = f"/api{'s' if '/' in group else ''}/{group}"
    return f"{root}/namespaces/{metadata['namespace']}/{document['kind'].lower()}s/{metadata['name']}"


@asynccontextmanager
async def serving(objects: Iterable[Document]) -> AsyncIterator[str]:
    """The address of an API that holds these objects."""
    groups = [_group(group) for group in KINDS if "/" in group]
    documents: dict[str, Document] = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        **{f"/api{'s' if '/' in group else ''}/{group}": _resources(group) for group in KINDS},
        **{_path(document): document for document in objects},
    }

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


async def templated(helm: Helm, address: str, *arguments: str, release: str = RELEASE) -> list[Document]:
    """What the chart makes where it can look objects up. Raises Refused with Helm's words."""
    process = await asyncio.create_subprocess_exec(
        *(helm.program, "template", release, CHART, "--namespace", NAMESPACE),
        *arguments,
        *("--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address),
        env={**os.environ, "KUBECONFIG": os.devnull},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        said, told = await process.communicate()
    if process.returncode:
        raise Refused(told.decode())
    return read(said.decode())
