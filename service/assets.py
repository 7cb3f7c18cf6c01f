"""Locates the demo and the JavaScript client: inside an installed wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def demo_folder() -> Path:
    """Returns the folder of the demo: contract, page and backend."""
    return _existing(_PACKAGE / "_demo", _PACKAGE.parent / "demo")


def client_folder() -> Path:
    """Returns the folder of the JavaScript client's modules."""
    return _existing(_PACKAGE / "_client", _PACKAGE.parent / "clients" / "js" / "src")


def _existing(packaged: Path, checkout: Path) -> Path:
    return packaged if packaged.is_dir() else checkout
