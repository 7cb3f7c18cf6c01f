"""The Pod Security Standard "restricted" (kubernetes.io, Pod Security Standards), and what this chart promises beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.chart.tools import Document

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_SECCOMP = {"RuntimeDefault", "Localhost"}
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


def pods(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The spec of every pod that documents make, with a name for it."""
    for document in documents:
        if document["kind"] == "Pod":
            yield document["metadata"]["name"], document["spec"]
        elif "template" in document.get("spec", {}):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def breaches(spec: dict[str, Any]) -> Iterator[str]:
    """What a pod does that restricted Pod Security, or the chart's promise, forbids."""
    for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
        if spec.get(name):
            yield name
    for volume in spec.get("volumes", ()):
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"volume of type {kind}"
    if (spec.get("securityContext") or {}).get("sysctls"):
        yield "sysctls"
    if spec.get("automountServiceAccountToken") is not False:
        yield "mounts the account's token"
    if spec.get("enableServiceLinks") is not False:
        yield "takes the variables of Services"
    for group in _CONTAINERS:
        for container in spec.get(group, ()):
            yield from (f"{container['name']}: {fault}" for fault in _container(container, spec))


def _container(container: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    both = {**(spec.get("securityContext") or {}), **own}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may escalate privileges"
    if both.get("runAsNonRoot") is not True:
        yield "may run as root"
    if both.get("runAsUser") == 0:
        yield "runs as user 0"
    if (both.get("seccompProfile") or {}).get("type") not in _SECCOMP:
        yield "no seccomp profile"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", ()):
        yield "keeps capabilities"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "host port"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "writes to its root"
