"""Credentials that the chart makes outlive upgrades: new ones would lock every user and backend out."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.chart.api import owned, serving, templated
from tests.chart.tools import NAME, Helm

pytestmark = pytest.mark.chart

PENDING = {"auth-secret": "the secret that was made when this was installed", "api-key": "the-api-key-of-that-day-0123"}


@asynccontextmanager
async def cluster(held: dict[str, str]) -> AsyncIterator[str]:
    """A cluster's API. `held`: what the release's Secret holds; nothing: none."""
    data = {name: base64.b64encode(text.encode()).decode() for name, text in held.items()}
    async with serving([owned("Secret", NAME, data=data)] if held else []) as address:
        yield address


async def credentials(helm: Helm, address: str) -> dict[str, str]:
    """What the Secret would hold after an install or an upgrade there."""
    [secret] = await templated(helm, address, "--show-only", "templates/secret.yaml")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    return {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}


async def test_upgrade_keeps_existing_credentials(each_helm: Helm) -> None:
    async with cluster(PENDING) as address:
        assert await credentials(each_helm, address) == PENDING


async def test_upgrade_adds_missing_credentials(each_helm: Helm) -> None:
    held = {"auth-secret": PENDING["auth-secret"]}
    async with cluster(held) as address:
        found = await credentials(each_helm, address)
    assert found.pop("api-key") != PENDING["api-key"]
    assert found == held


async def test_install_creates_new_credentials(each_helm: Helm) -> None:
    async with cluster({}) as address:
        first, second = await credentials(each_helm, address), await credentials(each_helm, address)
    assert first.keys() == second.keys() == PENDING.keys()
    assert not set(first.values()) & set(second.values())
    assert all(len(text) >= 64 for text in first.values())
