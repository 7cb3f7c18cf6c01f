"""What the tests do with the cluster: kubectl, Helm releases, and a watch that misses no change."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import yaml

from tests.chart.tools import CHART, Document, Helm, Values
from tests.cluster.programs import kubectl

WITHIN = 90.0
"""Seconds that anything may take here, on a machine that is busy."""
_LOOK = 0.1
"""Seconds between two looks at the cluster."""


class RefusedError(Exception):
    """kubectl failed. Says what it said."""


def eventually(holds: Callable[[], bool], what: str, *, within: float = WITHIN) -> None:
    """Asks the cluster again and again until it `holds`. Raises AssertionError after some seconds."""
    deadline = monotonic() + within
    while not holds():
        assert monotonic() < deadline, f"not within {within:g} s: {what}"
        sleep(_LOOK)  # the cluster is another process


class Cluster:
    """A control plane that runs, as its administrator sees it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl prints. Raises RefusedError."""
        done = subprocess.run(
            [kubectl(), *arguments], input=stdin, capture_output=True, text=True, timeout=WITHIN, env=self._environment
        )
        if done.returncode:
            raise RefusedError(done.stderr + done.stdout)
        return done.stdout

    def apply(self, *documents: Document) -> None:
        """Creates or changes objects. Raises RefusedError."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def get(self, kind: str, name: str, namespace: str) -> Document:
        """One object. Raises RefusedError where there is none."""
        found: Document = json.loads(
            self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--show-managed-fields")
        )
        return found

    def items(self, kind: str, namespace: str, selector: str = "") -> list[Document]:
        """All of a kind, or those with labels."""
        found = json.loads(self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json"))
        items: list[Document] = found["items"]
        return items

    def define(self, *definitions: Document) -> None:
        """Installs CustomResourceDefinitions and waits until objects of them can be made."""
        self.apply(*definitions)
        names = [f"crd/{each['metadata']['name']}" for each in definitions]
        self.kubectl("wait", "--for=condition=Established", f"--timeout={WITHIN:g}s", *names)

    @contextmanager
    def namespace(self, name: str, **labels: str) -> Iterator[str]:
        """Makes a namespace, and deletes it with all that is in it."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    @contextmanager
    def watch(self, kind: str, name: str, namespace: str) -> Iterator[list[Document]]:
        """Every state of an object, from the one it has to the one it has at the end of the block; the list is filled then."""
        states: list[Document] = []
        with tempfile.TemporaryFile("w+") as output:
            command = [str(kubectl()), "get", kind, name, "-n", namespace, "-o", "json", "--watch"]
            process = subprocess.Popen(command, stdout=output, env=self._environment)
            try:
                eventually(lambda: bool(_documents(output)), f"a watch of {kind} {name}")
                yield states
                last = self.get(kind, name, namespace)["metadata"]["resourceVersion"]
                eventually(
                    lambda: int(_documents(output)[-1]["metadata"]["resourceVersion"]) >= int(last),
                    f"the last state of {kind} {name}",
                )
            finally:
                process.kill()
                process.wait()
            states += _documents(output)


def _documents(output: Any) -> list[Document]:
    """The JSON documents that stand one behind the other in a file; not the last one if it is not whole."""
    output.seek(0)
    text = output.read()
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text):
        try:
            document, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            break
        found.append(document)
        place = end + 1  # its newline
    return found


@dataclass(frozen=True)
class Release:
    """A release of the chart, with one Helm, in a namespace. What Helm refuses is raised as Refused."""

    cluster: Cluster
    helm: Helm
    namespace: str
    name: str = "rt"
    chart: Path = CHART

    def with_chart(self, chart: Path) -> Release:
        """The same release, as another chart goes on with it."""
        return replace(self, chart=chart)

    def install(self, values: Values, *flags: str, wait: bool = True) -> str:
        """Installs it; by itself waits until all pods are available."""
        return self._run("install", str(self.chart), *self._waiting(wait), *flags, values=values)

    def upgrade(self, values: Values, *flags: str, wait: bool = True) -> str:
        """Upgrades it; by itself waits until all pods are available."""
        return self._run("upgrade", str(self.chart), *self._waiting(wait), *flags, values=values)

    def rollback(self, revision: int, *flags: str) -> str:
        """Goes back to a revision."""
        return self._run("rollback", str(revision), "--wait", *flags)

    def test(self) -> str:
        """`helm test`."""
        return self._run("test", "--timeout=60s")

    def uninstall(self) -> str:
        """Uninstalls it and waits until its objects are gone."""
        return self._run("uninstall", "--wait")

    def values(self, *, revision: int) -> Values:
        """The values that a revision was given."""
        text = self.helm.run(
            "get", "values", self.name, "--namespace", self.namespace, f"--revision={revision}", "--output=yaml"
        )
        found: Values = yaml.safe_load(text)
        return found

    def manifest(self) -> list[Document]:
        """The objects that Helm knows of it."""
        text = self.helm.run("get", "manifest", self.name, "--namespace", self.namespace)
        return [document for document in yaml.safe_load_all(text) if document]

    @staticmethod
    def _waiting(wait: bool) -> list[str]:
        return ["--wait"] if wait else []

    def _run(self, command: str, *arguments: str, values: Values | None = None) -> str:
        return self.helm.run(
            command, self.name, *arguments, "--namespace", self.namespace, values=values, within=WITHIN
        )


def replicas(states: list[Document]) -> list[int]:
    """`spec.replicas` of a Deployment in each of its states."""
    return [state["spec"]["replicas"] for state in states]


def available(states: list[Document]) -> list[int]:
    """Available pods of a Deployment in each of its states."""
    return [state["status"].get("availableReplicas", 0) for state in states]
