"""Every preset and every switch renders what Kubernetes takes, with Helm 3 as with Helm 4, under restricted Pod Security."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml

from scripts import kubernetes_types
from tests.chart.cases import CASES, SOME
from tests.chart.conftest import absent, rendered
from tests.chart.pod_security import breaches, pods
from tests.chart.schemas import faults, has_schemas
from tests.chart.tools import CHART, KUBERNETES, ROOT, WHOLE, Document, Helm, helms, of_kind, read

pytestmark = pytest.mark.chart

CHOSEN = [case for case in CASES if WHOLE or case in SOME]
FIRST, *LATER = KUBERNETES


def test_lint_has_nothing_to_say(each_helm: Helm) -> None:
    said = each_helm.run("lint", "--strict", str(CHART))
    assert "0 chart(s) failed" in said
    assert not re.search(r"\[(WARNING|ERROR)\]", said)


@pytest.mark.parametrize(
    "case", CASES if WHOLE else ["every secret", "network policy", "gateway aws sticky", "everything extra"]
)
def test_both_helms_make_the_same(case: str) -> None:
    if not {3, 4} <= set(helms()):
        absent("there are not both Helm 3 and Helm 4")
    assert _settled(rendered(helms()[3], case)) == _settled(rendered(helms()[4], case))


@pytest.mark.parametrize("case", CHOSEN)
def test_documents_are_what_kubernetes_takes(helm: Helm, case: str) -> None:
    if not has_schemas(FIRST):
        absent("there are no schemas of Kubernetes")
    for kubernetes in KUBERNETES if WHOLE else (FIRST, LATER[-1]):
        # Only the first gets other documents, which one case shows as well as all.
        has_own = kubernetes == FIRST and (WHOLE or case == "defaults")
        documents = rendered(helm, case, FIRST if has_own else LATER[-1])
        found = {_title(document): faults(document, kubernetes) for document in documents}
        assert not {title: told for title, told in found.items() if told}, kubernetes


@pytest.mark.parametrize("kubernetes", LATER if WHOLE else LATER[:1])
def test_chart_renders_the_same_for_later_kubernetes(helm: Helm, kubernetes: str) -> None:
    documents = helm.template(CASES["every secret"], kubernetes=kubernetes)
    assert documents == rendered(helm, "every secret", LATER[-1])


@pytest.mark.parametrize("change", ["unknown key", "unknown kind", "wrong type"])
def test_schemas_find_faults(helm: Helm, change: str) -> None:
    if not has_schemas(FIRST):
        absent("there are no schemas of Kubernetes")
    document = copy.deepcopy(of_kind(rendered(helm, "defaults"), "Deployment"))
    match change:
        case "unknown key":
            document["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
        case "unknown kind":
            document["kind"] = "Deploymint"
        case _:
            document["spec"]["replicas"] = "1"
    assert faults(document, LATER[-1])


def test_types_in_the_schema_of_values_are_those_of_kubernetes() -> None:
    if not has_schemas(KUBERNETES[-1]):
        absent("there are no schemas of Kubernetes")
    definitions = kubernetes_types.newest()
    assert definitions
    assert json.loads(kubernetes_types.FILE.read_bytes()) == kubernetes_types.types(definitions)


@pytest.mark.parametrize("case", CHOSEN)
def test_restricted_pod_security_holds(helm: Helm, case: str) -> None:
    found = {name: list(breaches(spec)) for name, spec in pods(rendered(helm, case))}
    assert found
    assert not {name: told for name, told in found.items() if told}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("enableServiceLinks",), True, "takes the variables of Services"),
        (("automountServiceAccountToken",), None, "mounts the account's token"),
        (("volumes", 0), {"name": "x", "hostPath": {"path": "/"}}, "volume of type hostPath"),
        (("securityContext", "seccompProfile"), None, "tidewire: no seccomp profile"),
        (("containers", 0, "securityContext", "runAsUser"), 0, "tidewire: runs as user 0"),
        (("containers", 0, "securityContext", "privileged"), True, "tidewire: privileged"),
        (("containers", 0, "securityContext", "capabilities"), {}, "tidewire: keeps capabilities"),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False, "tidewire: writes to its root"),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), None, "tidewire: may escalate privileges"),
    ],
)
def test_pod_check_finds_breaches(helm: Helm, place: tuple[Any, ...], value: object, told: str) -> None:
    [(_, spec)] = [pod for pod in pods(rendered(helm, "defaults")) if "test" not in pod[0]]
    changed = copy.deepcopy(spec)
    holder: Any = changed
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = value
    assert told in list(breaches(changed))


@pytest.mark.parametrize("case", CHOSEN)
def test_every_object_is_the_releases(helm: Helm, case: str) -> None:
    own = [d for d in rendered(helm, case) if not re.fullmatch(r"rt-(one|two)", d["metadata"]["name"])]
    for document in own:
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "rt", _title(document)
        assert document["metadata"]["namespace"] == "chat", _title(document)
    titles = [_title(document) for document in own]
    assert len(titles) == len(set(titles))


def test_duplicate_key_is_found() -> None:
    with pytest.raises(yaml.YAMLError, match=r"\['a'\] twice in one mapping"):
        read("x: {a: 1, b: 2, a: 3}")


def test_chart_has_the_project_version() -> None:
    [version] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert f'appVersion: "{version}"' in (CHART / "Chart.yaml").read_text(encoding="utf-8")


def _settled(documents: list[Document]) -> list[Document]:
    """In one order, and without what is random."""
    found = []
    for document in documents:
        if document["kind"] == "Secret":
            document = {**document, "data": sorted(document["data"])}
        found.append(document)
    return sorted(found, key=_title)


def _title(document: Document) -> str:
    return f"{document['apiVersion']}/{document['kind']} {document['metadata']['name']}"
