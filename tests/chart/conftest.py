"""Fixtures of the chart's tests. Without Helm they are skipped, and say what is missing."""

from __future__ import annotations

from functools import cache
from typing import NoReturn

import pytest

from tests.chart.cases import CASES
from tests.chart.tools import CHART, KUBERNETES, NAMESPACE, RELEASE, WHOLE, Document, Helm, Values, helms

INSTALL = "`make test-chart` or `scripts/setup.sh chart` installs it"
NEWEST = 4


def absent(what: str) -> NoReturn:
    """Skips the test for what cannot be had here; fails it where the whole matrix was asked for."""
    (pytest.fail if WHOLE else pytest.skip)(f"{what} here; {INSTALL}")


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The newest Helm there is."""
    if not helms():
        absent("there is no Helm")
    return helms().get(NEWEST) or helms()[max(helms())]


@pytest.fixture(scope="session", params=[3, NEWEST] if WHOLE else [NEWEST], ids=lambda major: f"helm{major}")
def each_helm(request: pytest.FixtureRequest) -> Helm:
    """Helm 3, then Helm 4; Helm 3 only in the whole matrix."""
    if request.param not in helms():
        absent(f"there is no Helm {request.param}")
    return helms()[request.param]


@cache
def rendered(helm: Helm, case: str, kubernetes: str = KUBERNETES[-1]) -> list[Document]:
    """The documents of a case, made once. Not to be changed."""
    return helm.template(CASES[case], kubernetes=kubernetes)


def notes(helm: Helm, values: Values) -> str:
    """What is printed after an install with these values, on one line."""
    if helm.major < NEWEST:
        absent("only Helm 4 shows notes without a cluster, and it is not")
    said = helm.run(
        "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client", "--hide-secret", values=values
    )
    return " ".join(said.partition("NOTES:")[2].split())
