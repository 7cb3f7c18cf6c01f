"""Clients and servers of different ages: connect, subscribe, publish, read history, resume."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.protocol.features import FEATURES
from tests.compatibility.player import DEADLINE, playing
from tests.compatibility.revisions import CHECKOUT, NEW_CLIENT, OLD_CLIENT
from tests.faults.node import Node
from tests.faults.tokens import SECRET
from tests.support.proxy import Proxy

pytestmark = pytest.mark.slow

CHANNEL = "hall:1"
CONTRACT = Path(__file__).with_name("contract.yaml")
CLIENTS = {"old": OLD_CLIENT, "new": NEW_CLIENT}


def checkout(age: str, request: pytest.FixtureRequest) -> Path:
    """The folder of the service. Skips the test if it is the old one, and the history does not have it."""
    folder: Path = request.getfixturevalue("old_checkout") if age == "old" else CHECKOUT
    return folder


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Node]:
    node = Node("node", "memory://", {"CONTRACT": str(CONTRACT)}, checkout=folder)
    try:
        await node.start()
        yield node
    finally:
        await node.close()


@asynccontextmanager
async def fronted(node: Node) -> AsyncIterator[tuple[Proxy, int]]:
    """A network in front of the node, which can be cut, and its port."""
    front = Proxy(node.port)
    try:
        yield front, await front.start()
    finally:
        await front.close()


def ids(name: str, count: int, first: int = 1) -> list[str]:
    return [f"{name}-{number}" for number in range(first, first + count)]


@pytest.mark.parametrize(("client", "server"), [("old", "new"), ("new", "old"), ("new", "new")])
async def test_javascript_client_works_with_server_of_other_age(
    client: str, server: str, request: pytest.FixtureRequest
) -> None:
    async with (
        serving(checkout(server, request)) as node,
        fronted(node) as (front, port),
        playing(CLIENTS[client], port, CHANNEL, "ann") as ann,
    ):
        await ann.ask("publish 10")
        front.cut()
        async with playing(CLIENTS[client], node.port, CHANNEL, "ben") as ben:
            await ben.ask("publish 5")
        front.heal()
        await ann.ask("publish 10")
        found = await ann.ask("until 25")
        wanted = [*ids("ann", 10), *ids("ben", 5), *ids("ann", 10, first=11)]
        assert [(id_, offset) for id_, offset, _ in found["heard"]] == list(zip(wanted, range(1, 26), strict=True))
        assert (await ann.ask("history"))["events"] == [[id_, offset] for id_, offset, _ in found["heard"]]
        assert found["troubles"] == []
        assert found["welcomes"] == 2
        assert found["features"] == (sorted(FEATURES) if server == "new" else [])
        if server == "new":
            versions = {name for name in await node.metrics() if name.startswith("client_versions_total{")}
            wanted_name = "unknown" if client == "old" else "tidewire-js"
            assert [name for name in versions if f'client="{wanted_name}"' in name]


@pytest.mark.parametrize(("client", "server"), [("old", "new"), ("new", "old")])
async def test_tail_works_with_server_of_other_age(client: str, server: str, request: pytest.FixtureRequest) -> None:
    async with serving(checkout(server, request)) as node:
        events = [{"type": "talk.line", "id": f"m-{number}", "data": {"line": number}} for number in range(1, 4)]
        status, body = await node.api("red", "POST", f"channels/{CHANNEL}/events", events)
        assert status == 200, body
        epoch = body["results"][0]["epoch"]
        shown = await tail(checkout(client, request), node.port, "--since", f"{epoch}:1:m-1", count=2)
        assert [(event["id"], event["offset"]) for event in shown] == [("m-2", 2), ("m-3", 3)]


async def tail(folder: Path, port: int, *arguments: str, count: int) -> list[dict[str, Any]]:
    """The first events that `tidewire tail` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "tail", CHANNEL, "--json", "--url", f"http://127.0.0.1:{port}"),
        *("--user", "ann", "--tenant", "red", *arguments),
        cwd=folder,
        env={**os.environ, "TIDEWIRE_AUTH__SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            return [json.loads(await process.stdout.readline()) for _ in range(count)]
    finally:
        process.kill()
        await process.wait()
