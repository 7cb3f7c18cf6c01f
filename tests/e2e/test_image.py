"""The image does what docs/deploy/image.md promises of it, run as the chart runs it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e import containers
from tests.e2e.containers import HARDENED, NO_SHELL, ROOT, TAG, WITHIN, Container, ContainersError, podman, started
from tests.stores.process import free_port, until
from tests.support.harness import API_KEY, CONTRACT, SECRET, token

pytestmark = pytest.mark.e2e

RESTART = 1012
MEMORY = 256 * 2**20
SIGTERM_BIT = 1 << 14
EVERYWHERE = "127.0.0.2"
"""Reaches what listens on every address, and not what listens on 127.0.0.1."""
HELM_TEST = ROOT / "helm" / "tidewire" / "files" / "test.py"


@pytest.fixture(scope="session", autouse=True)
def image() -> dict[str, Any]:
    """What the image of this checkout is made of, after it was built."""
    containers.build()
    return containers.inspect("image", TAG)


@dataclass(frozen=True)
class Served:
    """A container that serves."""

    container: Container
    url: str
    ops_url: str
    http: aiohttp.ClientSession

    @asynccontextmanager
    async def client(self, channel: str = "room:1") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Somebody who has subscribed to a channel."""
        async with self.http.ws_connect(f"{self.url}/ws", protocols=("tidewire.v1",)) as socket:
            await socket.send_json({"type": "hello", "token": token()})
            await heard(socket, "welcome")
            await socket.send_json({"type": "ready"})
            await socket.send_json({"type": "subscribe", "id": "s", "channel": channel})
            await heard(socket, "subscribed")
            yield socket


async def heard(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    """The next message of that kind; others before it, in batches or not, are dropped."""
    async with asyncio.timeout(WITHIN):
        while True:
            told = await socket.receive_json()
            for message in told if isinstance(told, list) else [told]:
                if message["type"] == kind:
                    found: dict[str, Any] = message
                    return found


def fields(status: str) -> dict[str, str]:
    """What the kernel tells of a process, by name."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}


def handles_sigterm(pid: int) -> bool:
    """Whether that process is the service by now, and no longer what starts it, and gets SIGTERM."""
    found = fields(Path(f"/proc/{pid}/status").read_text())
    return found["Name"] == "tidewire" and bool(int(found["SigCgt"], 16) & SIGTERM_BIT)


def configured(folder: Path) -> tuple[list[str], int, int]:
    """Options that mount the tests' contract and secrets and name free ports, and those ports."""
    files = {"secret": SECRET, "api-key": API_KEY, "contract.yaml": CONTRACT.read_text()}
    for file, content in files.items():
        (folder / file).write_text(content)
        (folder / file).chmod(0o444)
    folder.chmod(0o755)
    port, ops_port = free_port(), free_port()
    environment = {
        "TIDEWIRE_CONTRACT": "contract.yaml",
        "TIDEWIRE_AUTH__SECRET_FILE": "secret",
        "TIDEWIRE_API__KEY_FILE": "api-key",
        "TIDEWIRE_PORT": str(port),
        "TIDEWIRE_OPS_PORT": str(ops_port),
    }
    given = [f"--env={variable}={value}" for variable, value in environment.items()]
    return [f"--volume={folder}:/etc/tidewire:ro", *given], port, ops_port


@asynccontextmanager
async def serving(name: str, folder: Path, *options: str) -> AsyncIterator[Served]:
    """A container of which its log says that it serves."""
    given, port, ops_port = configured(folder)
    async with started(name, *given, *options) as container, aiohttp.ClientSession() as http:
        told = await container.hears("serving")
        assert told["native_send"] == "on", "the native sender is in the image"
        yield Served(container, f"http://{EVERYWHERE}:{port}", f"http://{EVERYWHERE}:{ops_port}", http)


def test_says_who_it_is_and_how_it_is_run(image: dict[str, Any]) -> None:
    config, size = image["Config"], image["Size"]
    print(f"the image is {size / 1e6:.0f} MB, its base included; {image['Architecture']}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image["Labels"].items()}
    assert labels["title"] == "Tidewire"
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
    assert labels["revision"].removesuffix("-changed") == commit
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["tidewire"], ["serve"]), "lists: started without a shell"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert set(config["ExposedPorts"]) == {"8080/tcp", "9090/tcp"}
    assert image["Healthcheck"]["Test"] == ["CMD", "tidewire", "health"], "without a shell, too"
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert variables["TIDEWIRE_HOST"] == variables["TIDEWIRE_OPS_HOST"] == "::"
    assert not [name for name in variables if re.search("SECRET|KEY|PASSWORD|TOKEN", name)]


async def test_says_what_is_missing_where_nothing_is_set() -> None:
    async with started("tidewire-nothing", *HARDENED) as container:
        assert container.process.stdout is not None
        async with asyncio.timeout(WITHIN):
            said = (await container.process.stdout.read()).decode()
        assert await container.ends() == 1
    assert "there is no contract: set contract (TIDEWIRE_CONTRACT) to its file" in said
    assert "nobody could get in: set auth.secret" in said
    assert "Traceback" not in said


def test_holds_no_compiler_no_pip_and_no_source_of_the_build() -> None:
    look = (
        "import glob, importlib.util, json, shutil; print(json.dumps(["
        "[name for name in ('pip', 'pip3', 'gcc', 'cc', 'c++', 'make') if shutil.which(name)], "
        "[name for name in ('pip', 'ensurepip', 'hatchling', 'pytest') if importlib.util.find_spec(name)], "
        "glob.glob('/src') + glob.glob('/opt/build') + glob.glob('/wheels') + glob.glob('/usr/include/stdio.h')]))"
    )
    found = podman(
        "run", "--rm", "--network=none", "--ulimit=host", "--no-healthcheck", "--entrypoint=python3", TAG, "-c", look
    )
    assert json.loads(found) == [[], [], []]


async def test_serves_without_a_shell_and_without_anything_to_write_to(tmp_path: Path) -> None:
    limit = containers.memory_limit()
    if not limit:
        print("this machine's cgroups limit no memory; the process's own peak is looked at all the same")
    async with serving("tidewire-serves", tmp_path, *HARDENED, *NO_SHELL, *limit) as served:
        for path in ("healthz", "readyz", "metrics"):
            async with served.http.get(f"{served.ops_url}/{path}") as answer:
                assert answer.status == 200, path
        async with served.client() as reader, served.client() as writer:
            await writer.send_json({"type": "chat.message", "id": "m1", "channel": "room:1", "data": {"text": "hi"}})
            assert (await heard(writer, "ack"))["id"] == "m1"
            assert (await heard(reader, "chat.message"))["data"] == {"text": "hi"}
        # The command of the health check, and what a person asks.
        assert await served.container.execute("tidewire", "health") == ""
        assert await served.container.execute("tidewire", "health", "--ready") == ""
        for shell in ("sh", "bash"):
            with pytest.raises(ContainersError, match="not found"):
                await served.container.execute(shell, "-c", "true")
        # As the container sees it: outside, a user without root has other numbers for the same.
        of = fields(await served.container.execute("python3", "-c", "print(open('/proc/1/status').read())"))
        assert of["Uid"].split() == ["10001"] * 4
        assert of["Name"] == "tidewire", "signals reach the service itself, which has the number 1"
        assert {int(of[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert of["NoNewPrivs"] == "1"
        peak = int(of["VmHWM"].split()[0]) * 1024
        print(f"the process's peak is {peak / 1e6:.0f} MB")
        assert peak < MEMORY
        if limit:
            assert containers.inspect("container", served.container.name)["HostConfig"]["Memory"] == MEMORY


async def test_drains_on_sigterm_and_has_written_nothing(tmp_path: Path) -> None:
    """With a root that could be written to, so that a file that somebody writes would be found."""
    async with serving("tidewire-drains", tmp_path, "--cap-drop=all") as served:
        container = served.container
        async with served.client() as one, served.client() as other:
            await container.signal("TERM")
            for socket in (one, other):
                async with asyncio.timeout(WITHIN):
                    async for _ in socket:
                        pass
                assert socket.close_code == RESTART
        await container.hears("draining")
        await container.hears("stopped")
        assert await container.ends() == 0
        changed = podman("diff", container.name).splitlines()
    # What podman itself lays there: mount points, and the names of host and user.
    laid = re.compile(
        r"[AC] /(etc|etc/(hosts|hostname|resolv\.conf|mtab|passwd|group|tidewire)|run(/.*)?|dev(/.*)?|proc|sys)"
    )
    assert [line for line in changed if not laid.fullmatch(line)] == []


async def test_sigterm_that_comes_while_it_starts_ends_it_at_once(tmp_path: Path) -> None:
    """A process with number 1 gets no signal that it does not handle: it has to handle this one before it does anything else."""
    given, _, _ = configured(tmp_path)
    async with started("tidewire-early", *HARDENED, *given) as container:
        pid = 0

        async def runs() -> bool:
            nonlocal pid
            with suppress(ContainersError):  # it is not there yet
                pid = await container.pid()
            return pid > 0

        async def handles() -> bool:
            return handles_sigterm(pid)

        await until(runs, "the process")
        await until(handles, "the handler of SIGTERM")
        await container.signal("TERM")
        assert container.process.stdout is not None
        async with asyncio.timeout(WITHIN):
            said = (await container.process.stdout.read()).decode()
        assert await container.ends() == 0
    assert "serving" not in said


@pytest.mark.parametrize("name", ["health", "publish", "resume"])
async def test_carries_out_the_chart_s_tests(tmp_path: Path, name: str) -> None:
    async with serving("tidewire-helm", tmp_path, *HARDENED) as served:
        environment = {
            "PUBLIC": served.url,
            "OPS": served.ops_url,
            "CHANNEL": "room:1",
            "TYPE": "chat.message",
            "DATA": '{"text": "helm test"}',
            "SECRET_FILE": "/etc/tidewire/secret",
            "ISSUER": "tidewire",
            "AUDIENCE": "tidewire",
        }
        said = podman(
            "run",
            "--rm",
            "--network=host",
            "--ulimit=host",
            "--no-healthcheck",
            *HARDENED,
            f"--volume={tmp_path}:/etc/tidewire:ro",
            f"--volume={HELM_TEST.parent}:/test:ro",
            *(f"--env={variable}={value}" for variable, value in environment.items()),
            "--entrypoint=python3",
            TAG,
            "/test/test.py",
            name,
        )
        assert said == f"{name}: good\n"
