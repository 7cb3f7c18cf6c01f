"""The controllers' own settings, as k8s/controllers has them, in the words of the proxies."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from tests.chart.tools import ROOT

CONTROLLERS = ROOT / "k8s" / "controllers"


@cache
def read(name: str) -> Any:
    """The one document of a file."""
    return yaml.safe_load((CONTROLLERS / f"{name}.yaml").read_text(encoding="utf-8"))


def haproxytech() -> dict[str, str]:
    """The data of the controller's ConfigMap."""
    found: dict[str, str] = read("haproxytech")["data"]
    return found


def traefik() -> dict[str, Any]:
    """What stands below an entry point of its static configuration."""
    entry: dict[str, Any] = read("traefik")["ports"]["websecure"]
    return entry
