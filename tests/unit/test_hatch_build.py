"""What a build makes: with a C compiler a wheel for this platform that holds the native sender, without one a pure wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from service.web.ws.native import LIBRARY, load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TREE = (
    ".gitignore",
    "pyproject.toml",
    "hatch_build.py",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "service",
    "demo",
    "clients/js/src",
)
PLACE = "service/web/ws/_native.so"
DEADLINE = 120

has_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="no C compiler is to be had here",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with all that a build needs, and a library that somebody else has left there."""
    made = tmp_path / "tree"
    for name in TREE:
        there = made / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, there, ignore=shutil.ignore_patterns("__pycache__", "_native.*"))
        else:
            shutil.copy(ROOT / name, there)
    (made / PLACE).write_bytes(b"of another machine")
    return made


def hatchling(tree: Path, target: str, out: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs it."""
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def build(tree: Path, target: str = "wheel", **environment: str) -> tuple[Path, str]:
    """What hatchling makes, and what it says."""
    out = tree.parent / "out"
    done = hatchling(tree, target, out, environment)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made, done.stdout + done.stderr


@has_compiler
def test_checkout_with_a_compiler_has_the_native_sender() -> None:
    """scripts/setup.sh builds it before the tests, which would otherwise try the service without it."""
    assert LIBRARY.exists()
    assert load() is not None


@has_compiler
def test_with_a_compiler_the_wheel_is_this_platform_s_for_every_python(tree: Path, tmp_path: Path) -> None:
    wheel, _ = build(tree)
    assert wheel.name.startswith("tidewire_server-")
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        assert load(Path(content.extract(PLACE, tmp_path))) is not None, "it is the new one"
        (about,) = (name for name in content.namelist() if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in content.read(about)


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"PATH": "/nowhere", "CC": ""}, "there is no C compiler"), ({"CC": "false"}, "ended with 1")],
)
def test_without_a_compiler_the_wheel_is_pure_and_the_build_says_so(
    tree: Path, environment: dict[str, str], said: str
) -> None:
    wheel, told = build(tree, **environment)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert said in told
    with zipfile.ZipFile(wheel) as content:
        assert not [name for name in content.namelist() if "_native" in name]
    assert not (tree / PLACE).exists(), "what runs must not be older than its source"


def refused(tree: Path, **environment: str) -> str:
    """What hatchling says when it makes no wheel."""
    done = hatchling(tree, "wheel", tree.parent / "none", environment)
    assert done.returncode
    assert not list((tree.parent / "none").glob("*.whl"))
    return done.stdout + done.stderr


def test_required_native_sender_without_a_compiler_fails_the_build(tree: Path) -> None:
    said = refused(tree, PATH="/nowhere", CC="", TIDEWIRE_BUILD_NATIVE="always")
    assert "is not compiled, and TIDEWIRE_BUILD_NATIVE is 'always': there is no C compiler" in said
    assert "TIDEWIRE_BUILD_NATIVE is 'perhaps'; it can be 'always' or 'never'" in refused(
        tree, TIDEWIRE_BUILD_NATIVE="perhaps"
    )


def test_pure_wheel_can_be_built_with_a_compiler(tree: Path) -> None:
    wheel, _ = build(tree, TIDEWIRE_BUILD_NATIVE="never")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as content:
        assert not [name for name in content.namelist() if "_native" in name]


@has_compiler
def test_source_distribution_can_be_built(tree: Path) -> None:
    made, _ = build(tree, "sdist")
    with tarfile.open(made) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"hatch_build.py", "service/web/ws/native.c", "service/web/ws/native.py"} <= names
    assert PLACE not in names
