"""The labs of the demo's inspector: real faults, for pages of this machine only, and within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tidewire import AsyncTidewire

from service.app import Service, running
from service.assets import demo_folder
from service.cli.inspector import lab as labs_module
from service.cli.inspector.lab import MAX_LABS, Labs
from service.cli.inspector.network import Network
from service.cli.inspector.routes import routes
from service.contract.load import load
from tests.support.harness import eventually, loaded, settings

CONTRACT = demo_folder() / "contract.yaml"


class Page:
    """What the page does: asks the routes of the demo, and follows the numbers."""

    def __init__(self, http: aiohttp.ClientSession, labs: Labs) -> None:
        self.http = http
        self.labs = labs

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.http.request(method, f"/demo/labs{path}", headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def start(self) -> dict[str, Any]:
        status, started = await self.ask("POST", "")
        assert status == 200, started
        return started


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    config = settings()
    assert config.contract is not None
    labs = Labs(lambda: loaded(CONTRACT))
    service = Service(config, load(config.contract), extra_routes=routes(labs))
    async with running(service) as (port, _), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield Page(http, labs)
        await labs.close()


def follower(page: Page, started: dict[str, Any]) -> AsyncTidewire:
    async def token() -> str:
        return str((await page.ask("GET", f"/{started['lab']}/token"))[1]["token"])

    return AsyncTidewire(started["url"].removesuffix("/ws").replace("ws://", "http://"), token=token)


@pytest.mark.parametrize("fault", ["cut", "reset", "slow", "revoke", "restart"])
async def test_inspector_fault_loses_no_kept_number(page: Page, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labs_module, "CUT_SECONDS", 1.5)
    monkeypatch.setattr(labs_module, "SLOW_SECONDS", 1.0)
    started = await page.start()
    numbers: list[int] = []
    plain: list[int] = []
    async with follower(page, started) as client:

        async def follow(channel: str, seen: list[int]) -> None:
            async for event in client.channel(channel):
                seen.append(event.data["n"])  # noqa: PERF401  # one by one, as they come

        following = [
            asyncio.create_task(follow(started["kept"], numbers)),
            asyncio.create_task(follow(started["plain"], plain)),
        ]
        await eventually(lambda: bool(numbers and plain))
        status, played = await page.ask("POST", f"/{started['lab']}/faults/{fault}")
        assert status == 200, played
        await eventually(
            lambda: numbers[-1] > played["published"] and plain[-1] > played["published"], lambda: numbers[-3:]
        )
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "each once, in order"
    if fault == "cut":
        assert len(plain) < plain[-1] - plain[0] + 1, "what was published meanwhile is lost"
    assert (await page.ask("DELETE", f"/{started['lab']}"))[0] == 200
    assert (await page.ask("GET", f"/{started['lab']}"))[0] == 404


async def test_inspector_blocked_upgrade_is_refused_by_the_network(page: Page) -> None:
    started = await page.start()
    lab = page.labs.find(started["lab"])
    lab.network.block_websockets(blocks=True)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await page.http.ws_connect(started["url"], protocols=("tidewire.v1",))
    async with page.http.get(started["url"]) as response:
        assert response.status == 426, "other requests pass"
    lab.network.block_websockets(blocks=False)
    async with page.http.ws_connect(started["url"], protocols=("tidewire.v1",)) as ws:
        await ws.send_json({"type": "hello", "token": lab.token()})
        assert (await ws.receive_json())["type"] == "welcome"


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}],
)
async def test_inspector_request_of_another_page_is_refused(page: Page, headers: dict[str, str]) -> None:
    started = await page.start()
    for method, path in (
        ("POST", ""),
        ("GET", f"/{started['lab']}"),
        ("DELETE", f"/{started['lab']}"),
        ("GET", f"/{started['lab']}/token"),
        ("POST", f"/{started['lab']}/faults/cut"),
    ):
        async with page.http.request(method, f"/demo/labs{path}", headers=headers) as response:
            assert response.status in (400, 403), (method, path)


async def test_inspector_labs_are_bounded_and_end_without_a_page(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    started = [await page.start() for _ in range(MAX_LABS + 1)]
    assert (await page.ask("GET", f"/{started[0]['lab']}"))[0] == 404, "the idlest makes room"
    assert (await page.ask("POST", f"/{started[1]['lab']}/faults/none"))[0] == 404
    monkeypatch.setattr(labs_module, "IDLE_TIMEOUT", 0.1)
    live = [page.labs.find(one["lab"]) for one in started[1:]]
    await eventually(lambda: all(lab.id not in page.labs for lab in live))


async def test_inspector_second_fault_is_refused_during_the_first(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labs_module, "CUT_SECONDS", 1.0)
    started = await page.start()
    first = asyncio.create_task(page.ask("POST", f"/{started['lab']}/faults/cut"))
    lab = page.labs.find(started["lab"])
    await eventually(lambda: lab.network.is_cut)
    assert (await page.ask("POST", f"/{started['lab']}/faults/reset"))[0] == 503
    assert (await first)[0] == 200
    assert not lab.network.is_cut


async def test_inspector_network_bounds_its_connections() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    network = Network(lambda: server.sockets[0].getsockname()[1])
    port = await network.start()
    writers = []
    for _ in range(40):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
    await eventually(lambda: network.connections == 32)
    for writer in writers:
        writer.close()
    await eventually(lambda: network.connections == 0)
    await network.close()
    server.close()
