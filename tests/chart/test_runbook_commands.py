"""The shell commands of the runbooks, run as they stand there: by a real kubectl, over the real log of a service, against a real
ops listener and a real Redis."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from tests.chart.cluster_api import NAMESPACE, PODS, api_server
from tests.chart.conftest import absent
from tests.chart.tools import ROOT, TOOLS
from tests.stores.redis_server import RedisServer
from tests.support.backend import serving_backend
from tests.support.harness import API_KEY, CONTRACT, SECRET
from tests.support.monitoring import RUNBOOKS
from tests.support.webhook_api import say, telling, until_dead

pytestmark = pytest.mark.chart

DEADLINE = 60.0
KUBECTL = TOOLS / "kubectl"
BLOCK = re.compile(r"^```sh\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    (page.stem, block) for page in sorted(RUNBOOKS.glob("*.md")) for block in BLOCK.findall(page.read_text("utf-8"))
]
# exec and port-forward need a kubelet: the command runs here, and the port is the service's own.
WRAPPER = """\
#!/bin/sh
case " $* " in
    *" port-forward "*) exit 0 ;;
    *" exec "*) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
esac
exec {kubectl} --kubeconfig {config} "$@"
"""


@dataclass(frozen=True)
class Shell:
    """Where the commands run."""

    folder: Path
    port: int
    ops_port: int
    redis: str

    def filled_in(self, block: str) -> str:
        """A block with what an operator puts in the place of the words in capitals."""
        names = {
            "NAMESPACE": NAMESPACE,
            "POD": PODS[0],
            "ENDPOINT": "archive",
            "URL": self.redis,
            "9090": str(self.ops_port),
        }
        for name, value in names.items():
            block = re.sub(rf"\b{name}\b", value, block)
        return block.replace("/proc/1/", f"/proc/{os.getpid()}/")

    async def run(self, block: str) -> tuple[int, str, str]:
        """Exit status, output and errors."""
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "TIDEWIRE_CONTRACT": str(CONTRACT),
            "TIDEWIRE_AUTH__SECRET": SECRET,
            "TIDEWIRE_API__KEY": API_KEY,
            "TIDEWIRE_PORT": str(self.port),
        }
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", self.filled_in(block)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        async with asyncio.timeout(DEADLINE):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()


async def pod_log() -> str:
    """The log of a service in which everything has happened that runbooks search for."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.pod_log"), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return errors.decode()


async def refuse(_: web.Request) -> web.Response:
    """What a receiver answers that does not accept an entry."""
    return web.Response(status=422)


@asynccontextmanager
async def shell(folder: Path) -> AsyncIterator[Shell]:
    if not KUBECTL.exists():
        absent("there is no kubectl")
    if shutil.which("redis-cli") is None or shutil.which("curl") is None:
        absent("there is no redis-cli or no curl")
    async with (
        api_server(await pod_log()) as address,
        serving_backend() as receiver,
        telling(receiver.endpoint("archive"), attempts=1) as service,
        RedisServer() as redis,
    ):
        receiver.reply = refuse
        await say(service, "room:1", "refused")
        await until_dead(service, 1)
        cluster = {"name": "c", "cluster": {"server": address}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        (folder / "config").write_text(
            json.dumps({**config, "users": [{"name": "u", "user": {}}], "current-context": "c"})  # JSON is YAML
        )
        wrapper = folder / "kubectl"
        wrapper.write_text(WRAPPER.format(kubectl=KUBECTL, config=folder / "config"))
        wrapper.chmod(0o755)
        (folder / "tidewire").symlink_to(Path(sys.executable).with_name("tidewire"))
        port, ops_port = (int(url.rpartition(":")[2]) for url in (service.url, service.ops_url))
        yield Shell(folder, port, ops_port, redis.url)


async def test_commands_of_runbooks_find_what_they_look_for(tmp_path: Path) -> None:
    assert BLOCKS
    async with shell(tmp_path) as here:
        for name, block in BLOCKS:
            status, output, errors = await here.run(block)
            assert status == 0, f"{name}: {block}\n{errors}"
            assert output.strip(), f"{name}: finds nothing: {block}\n{errors}"
            assert not re.search("unknown |usage:|not found", errors.lower()), f"{name}: {block}\n{errors}"


async def test_logs_of_a_selector_without_a_tail_are_ten_lines_and_find_nothing(tmp_path: Path) -> None:
    """That is what --tail=-1 is for: it shows that the test above would notice."""
    [block] = [block for name, block in BLOCKS if name == "TidewireBrokerUnavailable" and "logs" in block]
    async with shell(tmp_path) as here:
        _, output, _ = await here.run(block)
        assert output.count("broker_available") == len(PODS)
        status, output, _ = await here.run(block.replace(" --tail=-1", ""))
        assert (status, output) == (1, "")


def test_logs_of_a_selector_have_a_tail_everywhere() -> None:
    pages = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "k8s").rglob("*.md"),
        *(ROOT / "helm").rglob("*.md"),
        ROOT / "README.md",
    ]
    seen = 0
    for page in (*pages, *(ROOT / "helm").rglob("NOTES.txt")):
        for line in re.findall(r"kubectl .*\blogs\b.*", page.read_text(encoding="utf-8")):
            if re.search(r" (?:-l|--selector)\b", line):
                seen += 1
                assert "--tail=-1" in line, f"{page.relative_to(ROOT)}: {line}"
    assert seen
