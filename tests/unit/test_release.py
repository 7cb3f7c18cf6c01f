"""scripts/release.py: a release is of one version everywhere, and the changelog tells of it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("pyproject.toml", "clients/js/package.json", "clients/python/pyproject.toml", "helm/tidewire", "CHANGELOG.md")


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts/release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = _loaded()
VERSION = dict(release.versions())["pyproject.toml"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that could be released."""
    for name in PLACES:
        there = tmp_path / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, there)
        else:
            shutil.copy(ROOT / name, there)
    (tmp_path / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## [Unreleased]\n\n- later\n\n## {VERSION} - 2026-11-30\n\n- this\n\n## 0.0.1 - 2026-01-01\n\n- before\n"
    )
    return tmp_path


def test_checkout_has_one_version() -> None:
    assert set(dict(release.versions()).values()) == {VERSION}
    assert len(dict(release.versions())) == 6


def test_check_of_the_version_tag_returns_version_and_notes(tree: Path) -> None:
    assert release.check(f"v{VERSION}", tree) == VERSION
    assert release.notes(VERSION, (tree / "CHANGELOG.md").read_text()) == "- this\n"
    assert release.notes("0.0.1", (tree / "CHANGELOG.md").read_text()) == "- before\n"


def test_check_of_another_tag_names_every_place_that_differs(tree: Path) -> None:
    with pytest.raises(release.NotReleasableError) as refused:
        release.check("v9.9.9", tree)
    said = str(refused.value).splitlines()
    assert [line.split(" says ")[0] for line in said[:-1]] == [place for place, _ in release.versions()]
    assert said[-1] == "CHANGELOG.md: has no section '## 9.9.9 - YYYY-MM-DD'"


def test_release_chart_has_the_release_image(tree: Path, tmp_path: Path) -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    release.chart("registry.example.com/owner/tidewire", digest, tmp_path / "chart", tree)
    before, after = (
        yaml.safe_load((folder / "values.yaml").read_text()) for folder in (ROOT / "helm/tidewire", tmp_path / "chart")
    )
    assert (after["image"].pop("repository"), after["image"].pop("digest")) == (
        "registry.example.com/owner/tidewire",
        digest,
    )
    assert (before["image"].pop("repository"), before["image"].pop("digest")) == ("tidewire", "")
    assert after == before
