"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("tidewire")
    except PackageNotFoundError:  # source files that were never installed
        return "0.0.0"


__version__ = _installed()
