"""Installs pinned packages for benchmarks into build/bench, never into the project's environment."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.peer import CHECKOUT, TOOLS, Peer, UnavailableError

_INSTALL = 600.0
"""Timeout of an installer in seconds."""


def _run(what: str, line: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program. Raises UnavailableError with its last line of output."""
    try:
        done = subprocess.run(
            [*map(str, line)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=_INSTALL,
            check=False,
        )
    except FileNotFoundError:
        raise UnavailableError(f"{what}: the program {line[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{what}: it took more than {_INSTALL:g} s") from None
    if done.returncode:
        lines = [part.strip() for part in (done.stderr + "\n" + done.stdout).splitlines() if part.strip()]
        raise UnavailableError(f"{what} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


class Packages(ABC):
    """The packages of a peer."""

    @abstractmethod
    def missing(self) -> str | None:
        """Returns why it cannot be used, or None."""

    @abstractmethod
    def install(self) -> None:
        """Installs it if it is missing. Raises UnavailableError."""

    @abstractmethod
    def version(self) -> str:
        """Returns the versions of the measured package and its interpreter."""


class Packaged(Peer):
    """A peer with our program and third-party packages."""

    packages: ClassVar[Packages]

    def available(self) -> str | None:
        """Needs its packages."""
        return self.packages.missing()

    def install(self) -> None:
        """Installs them with their package manager into their own folder."""
        self.packages.install()

    def version(self) -> str:
        """Returns the versions of the package and its interpreter."""
        return self.packages.version()


class NodePackages(Packages):
    """The folder `node/`: one package.json and lock for all Node.js peers."""

    _source = Path(__file__).parent / "node"
    folder = TOOLS / "node"

    def __init__(self, measured: str) -> None:
        self._measured = measured

    def missing(self) -> str | None:
        """Node.js, npm, or the packages."""
        if shutil.which("node") is None or shutil.which("npm") is None:
            return "needs Node.js and npm (Debian: apt-get install npm)"
        if not self._current():
            return "its npm packages are not installed"
        return None

    def install(self) -> None:
        """Runs `npm ci` if needed. Raises UnavailableError."""
        if self._current():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(self._source / name, self.folder / name)
        flags = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        _run("npm ci", ["npm", "ci", *flags], cwd=self.folder)
        self._stamp.write_text(self._wanted())

    def version(self) -> str:
        """Returns the versions of the package and Node.js."""
        package = self._measured
        read = f"process.stdout.write(require('{package}/package.json').version + ', Node.js ' + process.version)"
        return f"{package} " + _run("node", ["node", "-e", read], cwd=self.folder)

    @property
    def env(self) -> dict[str, str]:
        """Returns variables with which programs outside the folder find the packages."""
        return {"NODE_PATH": str(self.folder / "node_modules"), "NODE_ENV": "production"}

    @property
    def _stamp(self) -> Path:
        return self.folder / "node_modules" / ".benchmarks.stamp"

    def _wanted(self) -> str:
        return hashlib.sha256((self._source / "package-lock.json").read_bytes()).hexdigest()

    def _current(self) -> bool:
        return self._stamp.is_file() and self._stamp.read_text() == self._wanted()


class PythonPackages(Packages):
    """A virtual environment of its own, with exactly what a lock in the folder `python/` names; of wheels only, unless there are
    none. `scripts/lock.sh --peers` writes the locks."""

    _locks = Path(__file__).parent / "python"

    def __init__(self, measured: str, *, wheels: bool = True) -> None:
        self._measured = measured
        self._folder = TOOLS / "python" / measured
        self._lock = self._locks / f"{measured}.lock"
        self._wheels = wheels

    @property
    def python(self) -> Path:
        """Returns its interpreter."""
        return self._folder / "bin" / "python"

    def missing(self) -> str | None:
        """The packages: Python is there."""
        return None if self._current() else f"its Python packages are not installed ({self._lock.name})"

    def install(self) -> None:
        """Creates it with uv if it is missing. Raises UnavailableError."""
        if self._current():
            return
        uv: list[str | Path] = [sys.executable, CHECKOUT / "scripts" / "run_uv.py"]
        _run("a virtual environment", [*uv, "venv", "--clear", "--python", sys.executable, self._folder])
        # What a source is built with is named by the lock as well.
        how = (
            ["--only-binary", ":all:"]
            if self._wheels
            else ["--require-build-hashes", "--build-constraints", self._lock]
        )
        _run("uv pip sync", [*uv, "pip", "sync", "--require-hashes", *how, "--python", self._folder, self._lock])
        self._stamp.write_text(self._wanted())

    def version(self) -> str:
        """Returns the versions of the package and Python."""
        package = self._measured
        read = (
            "import platform; from importlib.metadata import version; "
            f"print(version({package!r}), platform.python_version(), sep=', Python ')"
        )
        return f"{package} " + _run("python", [self.python, "-c", read]).strip()

    @property
    def _stamp(self) -> Path:
        return self._folder / "benchmarks.stamp"

    def _wanted(self) -> str:
        return sys.version + "\n" + self._lock.read_text()

    def _current(self) -> bool:
        return self._stamp.is_file() and self._stamp.read_text() == self._wanted()


def apt_install(*packages: str) -> None:
    """Installs Debian packages, if permitted, without starting services. Raises UnavailableError."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise UnavailableError(
            f"needs {' and '.join(packages)}; as root on Debian: apt-get install {' '.join(packages)}"
        )
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        _run("apt-get update", ["apt-get", "update", "-qq"], env=env)
        _run("apt-get install", ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=env)
    finally:
        if ours:
            policy.unlink()


def go_install(module: str, version: str) -> None:
    """Installs a program of a Go module into `TOOLS / "bin"`. Raises UnavailableError."""
    if shutil.which("go") is None:
        raise UnavailableError(f"needs the program {module}, or Go to build it")
    _run(f"go install {module}@{version}", ["go", "install", f"{module}@{version}"], env={"GOBIN": str(TOOLS / "bin")})


def go_build(folder: Path, program: Path) -> None:
    """Builds our Go program with the modules of its go.sum. Raises UnavailableError."""
    if shutil.which("go") is None:
        raise UnavailableError(f"needs Go to build {program.name}")
    line: list[str | Path] = ["go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-o", program, "."]
    _run(f"go build of {program.name}", line, cwd=folder, env={"GOWORK": "off"})
