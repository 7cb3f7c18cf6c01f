"""As much of the Kubernetes API as the commands of the runbooks read: objects of one release, and its pods' logs. Flags,
selectors and defaults are kubectl's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

NAMESPACE, NAME = "chat", "rt-tidewire"
PODS = (f"{NAME}-7d9c5b8f6-abcde", f"{NAME}-7d9c5b8f6-fghij")
LABELS = {"app.kubernetes.io/name": "tidewire"}
_CREATED = "2026-11-01T12:00:00Z"
_KINDS = {
    "v1": {"pods": "Pod", "events": "Event"},
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
}


def _meta(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": NAMESPACE, "uid": name, "creationTimestamp": _CREATED, "labels": LABELS}


def _pod(name: str) -> dict[str, Any]:
    terminated = {"exitCode": 137, "reason": "OOMKilled", "startedAt": _CREATED, "finishedAt": _CREATED}
    status = {"name": "tidewire", "ready": True, "restartCount": 3, "image": "tidewire", "imageID": "", "started": True}
    return {
        "metadata": _meta(name),
        "spec": {"containers": [{"name": "tidewire", "image": "tidewire"}], "nodeName": "machine-1"},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {**status, "state": {"running": {"startedAt": _CREATED}}, "lastState": {"terminated": terminated}}
            ],
        },
    }


def _deployment() -> dict[str, Any]:
    template = {"metadata": {"labels": LABELS}, "spec": _pod("")["spec"]}
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}
    return {
        "metadata": {**_meta(NAME), "generation": 2, "annotations": {"deployment.kubernetes.io/revision": "2"}},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": LABELS},
            "template": template,
            "strategy": {"type": "Recreate"},
        },
        "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "conditions": [condition]},
    }


def _autoscaler() -> dict[str, Any]:
    return {
        "metadata": _meta(NAME),
        "spec": {
            "minReplicas": 2,
            "maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
                }
            ],
        },
        "status": {"currentReplicas": 3, "desiredReplicas": 3, "conditions": [], "currentMetrics": []},
    }


def _event() -> dict[str, Any]:
    return {
        "metadata": _meta("event-1"),
        "involvedObject": {"kind": "Pod", "name": PODS[0], "namespace": NAMESPACE},
        "type": "Warning",
        "reason": "Unhealthy",
        "message": "Readiness probe failed",
        "firstTimestamp": _CREATED,
        "lastTimestamp": _CREATED,
        "count": 1,
    }


_OBJECTS: Mapping[str, list[dict[str, Any]]] = {
    "pods": [_pod(name) for name in PODS],
    "events": [_event()],
    "deployments": [_deployment()],
    "replicasets": [],
    "horizontalpodautoscalers": [_autoscaler()],
}


def _discovery() -> dict[str, dict[str, Any]]:
    """What the server has, by the path at which it says so."""
    found: dict[str, dict[str, Any]] = {"/api": {"kind": "APIVersions", "versions": ["v1"]}}
    groups = []
    for version, kinds in _KINDS.items():
        group, _, number = version.rpartition("/")
        if group:
            known = {"groupVersion": version, "version": number}
            groups.append({"name": group, "versions": [known], "preferredVersion": known})
        names = [
            {"name": name, "kind": kind, "namespaced": True, "verbs": ["get", "list"], "shortNames": _short(name)}
            for name, kind in kinds.items()
        ]
        path = f"/apis/{version}" if group else "/api/v1"
        found[path] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": names}
    found["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return found


def _short(name: str) -> list[str]:
    return ["hpa"] if name == "horizontalpodautoscalers" else []


@asynccontextmanager
async def api_server(log: str) -> AsyncIterator[str]:
    """Serves the objects, and `log` as that of every pod; gives its address."""
    discovery = _discovery()

    async def told(request: web.Request) -> web.Response:
        return web.json_response(discovery[request.path])

    async def listed(request: web.Request) -> web.Response:
        kinds = {name: (version, kind) for version, names in _KINDS.items() for name, kind in names.items()}
        name = request.match_info["resource"]
        version, kind = kinds[name]
        items = [{"apiVersion": version, "kind": kind, **one} for one in _OBJECTS[name]]
        wanted = request.match_info.get("name")
        if wanted is not None:
            found = [one for one in items if one["metadata"]["name"] == wanted]
            if not found:
                failure = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": wanted}
                return web.json_response(failure, status=404)
            return web.json_response(found[0])
        selector = dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)
        chosen = [one for one in items if selector.items() <= one["metadata"]["labels"].items()]
        return web.json_response({"apiVersion": version, "kind": f"{kind}List", "metadata": {}, "items": chosen})

    async def logged(request: web.Request) -> web.Response:
        lines = log.splitlines(keepends=True)
        tail = int(request.query.get("tailLines", len(lines)))
        return web.Response(text="".join(lines[-tail:] if tail else []))

    app = web.Application()
    app.add_routes([web.get(path, told) for path in discovery])
    for root in ("/api/v1", "/apis/{group}/{version}"):
        app.add_routes(
            [
                web.get(f"{root}/namespaces/{NAMESPACE}/{{resource}}", listed),
                web.get(f"{root}/namespaces/{NAMESPACE}/{{resource}}/{{name}}", listed),
            ]
        )
    app.add_routes([web.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{{name}}/log", logged)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
