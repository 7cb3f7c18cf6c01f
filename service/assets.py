"""Where the demo and the JavaScript client are: inside an installed wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def demo_folder() -> Path:
    """The demo: its contract, page and backend."""
    return _first(_PACKAGE / "_demo", _PACKAGE.parent / "demo")


def client_folder() -> Path:
    """The JavaScript client's modules."""
    return _first(_PACKAGE / "_client", _PACKAGE.parent / "clients" / "js" / "src")


def _first(packaged: Path, checkout: Path) -> Path:
    return packaged if packaged.is_dir() else checkout
