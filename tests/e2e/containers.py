"""The image, built by buildah and run by podman, in a store of its own that `make clean` removes.

Where a registry is reached, IMAGE_BASE names the real base (`docker.io/library/python:3.13-slim`). Without it one is made of
Debian's packages, which takes a minute and is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "build" / "image"
BASE_SCRIPT = Path(__file__).with_name("base_image.sh")
TAG = "localhost/tidewire:test"
BUILD = 600.0
"""Seconds that a base or an image may take."""
WITHIN = 60.0
"""Seconds for any other thing, a start of the service on a busy machine included."""

# The container's limits are this machine's: one that may not raise its own could not start podman's defaults.
_CONF = """
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "{store}/tmp"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{store}/storage"
runroot = "{store}/run"
"""
HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
"""As the chart runs it: nothing can be written, and there is no folder in memory either."""
NO_SHELL = tuple(f"--volume=/dev/null:{shell}:ro" for shell in ("/usr/bin/dash", "/usr/bin/bash"))
"""The base's shells are no programs any more."""


class ContainersError(Exception):
    """A program is missing, or said no; says which and what."""


def _environment() -> dict[str, str]:
    STORE.mkdir(parents=True, exist_ok=True)
    made = {
        "CONTAINERS_CONF": (STORE / "containers.conf", _CONF),
        "CONTAINERS_STORAGE_CONF": (STORE / "storage.conf", _STORAGE),
    }
    for file, content in made.values():
        file.write_text(content.format(store=STORE))
    return {**os.environ, **{variable: str(file) for variable, (file, _) in made.items()}}


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ContainersError(f"{name} is not installed; `make test-image` or `scripts/setup.sh image` installs it")
    return found


def _run(command: Sequence[str], within: float = WITHIN, **environment: str) -> str:
    """What it prints. Raises ContainersError with what it says if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=within,
    )
    if done.returncode:
        raise ContainersError(
            f"{' '.join(command)} ended with {done.returncode}:\n{(done.stderr + done.stdout)[-4000:]}"
        )
    return done.stdout


def podman(*arguments: str, within: float = WITHIN) -> str:
    """What podman prints. Raises ContainersError."""
    return _run([_program("podman"), "--log-level=error", *arguments], within)


def inspect(kind: str, name: str) -> dict[str, Any]:
    """What podman knows of an image or a container."""
    (found,) = json.loads(podman(kind, "inspect", name))
    assert isinstance(found, dict)
    return found


def build() -> None:
    """Builds the image of this checkout as TAG, with `scripts/image.sh`. Raises ContainersError."""
    _program("buildah")
    _run(
        ["scripts/image.sh", TAG],
        BUILD,
        BUILDER="buildah",
        OPTIONS="--isolation chroot --network host --layers",
        PYTHON_IMAGE=os.environ.get("IMAGE_BASE") or _stand_in(),
    )
    podman("image", "prune", "--force", "--filter=until=24h")  # layers of earlier checkouts


def _stand_in() -> str:
    """The name of the image that stands in for the official one; made if it is not there yet."""
    name = f"localhost/python-stand-in:{hashlib.sha256(BASE_SCRIPT.read_bytes()).hexdigest()[:12]}"
    if name.rpartition(":")[2] not in podman("images", "--format", "{{.Tag}}").split():
        archive = STORE / "base.tar"
        _run([str(BASE_SCRIPT), str(archive)], BUILD)
        podman("import", "--quiet", str(archive), name, within=BUILD)
        archive.unlink()
    return name


def memory_limit() -> list[str]:
    """What limits a container to 256 MiB; nothing where this machine's cgroups cannot."""
    able = "memory" in json.loads(podman("info", "--format", "json"))["host"]["cgroupControllers"]
    return ["--memory=256m"] if able else []


@dataclass
class Container:
    """A container of the image, run in the foreground by a podman whose output is the service's."""

    name: str
    process: asyncio.subprocess.Process
    said: list[dict[str, Any]] = field(default_factory=list)
    """The lines of its log, as far as they were read."""

    async def hears(self, event: str) -> dict[str, Any]:
        """Reads its log until that event is told, and returns the line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WITHIN):
            while line := await self.process.stdout.readline():
                try:
                    told = json.loads(line)
                except ValueError:
                    told = {"event": line.decode(errors="replace")}
                self.said.append(told)
                if told.get("event") == event:
                    return self.said[-1]
        raise AssertionError(f"it ended before it said {event!r}; its log: {self.said}")

    async def ends(self) -> int:
        """Waits for its end; the exit code of its process."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WITHIN):
            await self.process.stdout.read()
            return await self.process.wait()

    async def signal(self, name: str) -> None:
        """Sends its process a signal, as a kubelet does."""
        await asyncio.to_thread(podman, "kill", "--signal", name, self.name)

    async def execute(self, *command: str) -> str:
        """Runs a command beside its process; what that prints. Raises ContainersError if it fails."""
        return await asyncio.to_thread(podman, "exec", self.name, *command)

    async def pid(self) -> int:
        """Of its process, as this machine counts; 0 before it has started. Raises ContainersError before it is there."""
        return int((await asyncio.to_thread(inspect, "container", self.name))["State"]["Pid"])


@asynccontextmanager
async def started(name: str, *options: str, command: Sequence[str] = ()) -> AsyncIterator[Container]:
    """Runs a container for the length of the block. It is there until the end, also when its process has ended."""
    process = await asyncio.create_subprocess_exec(
        _program("podman"),
        "--log-level=error",
        "run",
        f"--name={name}",
        "--replace",
        "--network=host",
        "--no-healthcheck",  # podman asks systemd for its timer, which is not everywhere; the command is tried by itself
        "--ulimit=host",
        *options,
        TAG,
        *command,
        env=_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Container(name, process)
    finally:
        await asyncio.to_thread(podman, "rm", "--force", "--time=0", "--ignore", name)
        await process.wait()
