"""Fixtures of the chart's tests. Without Helm they are skipped, and say what is missing."""

from __future__ import annotations

from functools import cache

import pytest

from tests.chart.cases import CASES
from tests.chart.tools import KUBERNETES, Document, Helm, helms

INSTALL = "`make test-chart` or `scripts/setup.sh chart` installs it"
NEWEST = 4


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The newest Helm there is."""
    if not helms():
        pytest.skip(f"there is no Helm here; {INSTALL}")
    return helms().get(NEWEST) or helms()[max(helms())]


@pytest.fixture(scope="session", params=[3, 4], ids=["helm3", "helm4"])
def each_helm(request: pytest.FixtureRequest) -> Helm:
    """Helm 3, then Helm 4."""
    if request.param not in helms():
        pytest.skip(f"there is no Helm {request.param} here; {INSTALL}")
    return helms()[request.param]


@cache
def rendered(helm: Helm, case: str, kubernetes: str = KUBERNETES[-1]) -> list[Document]:
    """The documents of a case, made once. Not to be changed."""
    return helm.template(CASES[case], kubernetes=kubernetes)
