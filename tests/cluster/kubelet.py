"""Plays nodes, their kubelets and a cloud's load balancers: `python -m tests.cluster.kubelet URL TOKEN CA READY`.

Registers three nodes in three zones. A pod that is scheduled to one of them becomes ready at once, a pod that may end
(`restartPolicy: Never`) has succeeded at once, and one that is deleted is gone at once: no container runs. A pod whose image has
the tag `broken` never starts, as if it could not be pulled. READY is a file, written when the nodes are there.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

NODES = {"node-a": "zone-a", "node-b": "zone-b", "node-c": "zone-c"}
HEARTBEAT = 10.0
"""Seconds between two reports of a node; Kubernetes misses it after 50."""
CAPACITY = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "100Gi", "pods": "110"}
BROKEN = ":broken"
"""How an image ends that cannot be pulled."""
BALANCER = "192.0.2.1"
_MERGE = {"Content-Type": "application/strategic-merge-patch+json"}

Document = dict[str, Any]


class Kubelets:
    """All of them, on one connection to the API server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def register(self) -> None:
        """Makes the nodes, ready."""
        for name, zone in NODES.items():
            labels = {
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": zone,
                "kubernetes.io/arch": "amd64",
                "pool": "rt",
            }
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
            await self._send("POST", "/api/v1/nodes", node)
        await self._report()

    async def run(self) -> None:
        """Reports on nodes and serves pods until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heartbeats())
            tasks.create_task(self._each("/api/v1/pods", self._serve))
            tasks.create_task(self._each("/api/v1/services", self._expose))

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await self._report()

    async def _report(self) -> None:
        now = _now()
        condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        status = {"capacity": CAPACITY, "allocatable": CAPACITY, "conditions": [condition]}
        for name in NODES:
            await self._send("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})

    async def _each(self, path: str, serve: Callable[[Document], Awaitable[None]]) -> None:
        """Serves objects as they come and change. A watch ends now and then; then they are listed anew."""
        while True:
            async for found in self._changes(path):
                await serve(found)

    async def _changes(self, path: str) -> AsyncIterator[Document]:
        async with self._session.get(path) as answer:
            answer.raise_for_status()
            listed = await answer.json()
        for found in listed["items"]:
            yield found
        query = {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
        async with self._session.get(path, params=query) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":  # too long ago
                    return
                if event["type"] != "DELETED":
                    yield event["object"]

    async def _expose(self, service: Document) -> None:
        """Gives a load balancer its address, as a cloud does."""
        if service["spec"]["type"] == "LoadBalancer" and not service["status"]["loadBalancer"].get("ingress"):
            metadata = service["metadata"]
            path = f"/api/v1/namespaces/{metadata['namespace']}/services/{metadata['name']}/status"
            await self._send("PATCH", path, {"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}})

    async def _serve(self, pod: Document) -> None:
        if pod["spec"].get("nodeName") not in NODES:
            return
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if metadata.get("deletionTimestamp"):
            await self._send("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}})
        elif pod["status"]["phase"] == "Pending" and not pod["status"].get("containerStatuses"):
            await self._send("PATCH", f"{path}/status", {"metadata": {"uid": metadata["uid"]}, "status": _status(pod)})

    async def _send(self, method: str, path: str, body: Document) -> None:
        """404 and 409 are of a pod that changed meanwhile: its next change tells."""
        headers = _MERGE if method == "PATCH" else {}
        async with self._session.request(method, path, data=json.dumps(body), headers=headers) as answer:
            if answer.status not in (404, 409):
                answer.raise_for_status()


def _status(pod: Document) -> Document:
    """What becomes of a pod."""
    now = _now()
    containers = pod["spec"]["containers"]
    if any(container["image"].endswith(BROKEN) for container in containers):
        state: Document = {"waiting": {"reason": "ImagePullBackOff", "message": "there is no such image"}}
        return {"phase": "Pending", "containerStatuses": [_container(each, state, ready=False) for each in containers]}
    ends = pod["spec"]["restartPolicy"] == "Never"
    state = (
        {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now}}
        if ends
        else {"running": {"startedAt": now}}
    )
    conditions = [
        {"type": kind, "status": "False" if ends and kind != "Initialized" else "True", "lastTransitionTime": now}
        for kind in ("Initialized", "ContainersReady", "Ready")
    ]
    return {
        "phase": "Succeeded" if ends else "Running",
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": [_container(each, state, ready=not ends) for each in containers],
    }


def _container(container: Document, state: Document, *, ready: bool) -> Document:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "restartCount": 0,
        "ready": ready,
        "started": ready,
        "state": state,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def main(url: str, token: str, ca: str, registered: Callable[[], None]) -> None:
    """Plays until it is ended; calls `registered` when the nodes are there."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    context = ssl.create_default_context(cafile=ca)
    async with aiohttp.ClientSession(
        url,
        headers=headers,
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=2**24,  # an event of a watch is one line
    ) as session:
        kubelets = Kubelets(session)
        await kubelets.register()
        registered()
        await kubelets.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]).touch))
