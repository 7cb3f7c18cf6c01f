"""Measures whether the faults of a hook's backend slow down clients who do not ask it.

    python -m tests.load.hook_faults --rate 500

One fault after the other: half of the clients publish events that a faulty backend decides about, again and again. The others
publish events without a hook at a fixed rate; their `ack` must come as fast as without a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.load.hooks import CLIENTS, Client, Row, connected, measure
from tests.load.server import CONFIG, PLENTY, Server, serving
from tests.stores.certificates import Certificates
from tests.support.backend import SECRET

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
BOMB = gzip.compress(bytes(1 << 20))
"""About 1 kB that unpacks to 1 MB of zeros, as much as gzip can."""
FLOOD = 10_000
"""Upgrades with guessed tokens."""
FLOOD_AT_ONCE = 100
FLOOD_RATE = {"per_second": 20, "burst": 50}
"""The rate of questions about clients in the settings."""
SLOW = 4.0
"""Seconds: less than the timeout of the endpoint."""


async def _slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(SLOW)
    return web.json_response({"allow": True})


async def _hang(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def _fail(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def _bad_json(request: web.Request) -> web.StreamResponse:
    return web.Response(text='{"allow": tru')


async def _wrong_schema(request: web.Request) -> web.StreamResponse:
    return web.json_response({"allow": "yes"})


async def _bomb(request: web.Request) -> web.StreamResponse:
    return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 16_384)
    return response


async def _redirect(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": str(request.url)})


async def _good(request: web.Request) -> web.StreamResponse:
    return web.json_response({"allow": True})


async def _refuse(request: web.Request) -> web.StreamResponse:
    return web.json_response({"allow": False, "error": "invalid_token"})


FAULTS: dict[str, Answer] = {
    "none": _good,
    "slow": _slow,
    "hanging": _hang,
    "errors": _fail,
    "bad-json": _bad_json,
    "wrong-schema": _wrong_schema,
    "gzip-bomb": _bomb,
    "endless": _endless,
    "redirect": _redirect,
    "dns-gone": _good,
    "tls-expired": _good,
}


def _contract() -> dict[str, Any]:
    events: dict[str, Any] = {"desk.plain": {"publish": "authenticated", "delivery": "ephemeral"}}
    for fault in FAULTS:
        hook = {"endpoint": fault}
        events[f"desk.{fault}"] = {"publish": "authenticated", "delivery": "ephemeral", "hook": hook}
    return {"channels": {"desk:{desk}": {"subscribe": "authenticated", "events": events}}}


def _settings(contract: Path, port: int, tls_port: int, ca: Path) -> dict[str, Any]:
    urls = {fault: f"http://127.0.0.1:{port}/{fault}" for fault in (*FAULTS, "connect")}
    urls["dns-gone"] = "http://hook.invalid/dns-gone"
    urls["tls-expired"] = f"https://127.0.0.1:{tls_port}/tls-expired"
    endpoints = [
        {"name": fault, "url": url, "tenants": ["default"], "secrets": [SECRET], "timeout": 5.0}
        | ({"ca": str(ca)} if fault == "tls-expired" else {})
        for fault, url in urls.items()
    ]
    limits = {**CONFIG["limits"], "connection_rate": PLENTY, "user_rate": PLENTY, "tenant_rate": PLENTY}
    return CONFIG | {
        "contract": str(contract),
        "limits": limits,
        "hooks": {"endpoints": endpoints, "connect": {"endpoint": "connect", "rate": FLOOD_RATE}},
    }


async def _ask(client: Client, type_: str) -> None:
    """Publishes an event about which the backend is asked, and the next one when there is a reply."""
    while True:
        if not client.waiting:
            await client.publish(type_)
        await asyncio.sleep(0.05)


async def _knock(server: Server, numbers: Iterator[int]) -> None:
    """Sends upgrades with guessed tokens, one after the other."""
    async with aiohttp.ClientSession() as http:
        for number in numbers:
            headers = {"Authorization": f"Bearer guess-{number}"}
            async with http.get(f"http://127.0.0.1:{server.port}/ws", headers=headers) as response:
                assert response.status in (401, 503), await response.text()


async def _outcomes(server: Server, fault: str) -> str:
    prefix = f'hooks_total{{endpoint="{fault}",outcome="'
    found = {name[len(prefix) : -2]: n for name, n in (await server.metrics()).items() if name.startswith(prefix)}
    return ", ".join(f"{outcome} {number:.0f}" for outcome, number in found.items() if number)


async def _print(server: Server, fault: str, row: Row) -> None:
    outcomes, rss = await _outcomes(server, fault), server.usage().rss
    print(f"| {fault} | {row.p50:.1f} ms | {row.p99:.1f} ms | {outcomes} | {rss // 1024} MB |", flush=True)


async def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.hook_faults", description=__doc__)
    parser.add_argument("--rate", type=int, default=500, help="publishes a second without a hook")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each fault")
    arguments = parser.parse_args()
    app = web.Application()
    for fault, answer in (*FAULTS.items(), ("connect", _refuse)):
        app.router.add_post(f"/{fault}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = Certificates(folder, until=datetime.now(UTC) - timedelta(hours=1))
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificates.certificate, certificates.key)
        for context in (None, tls):
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        port, tls_port = (address[1] for address in runner.addresses)
        contract = folder / "contract.yaml"
        contract.write_text(yaml.safe_dump(_contract()))
        settings = _settings(contract, port, tls_port, certificates.ca)
        print("| fault | others' p50 | others' p99 | outcomes | memory of the service |\n|---|---|---|---|---|")
        async with serving(folder, settings) as server, connected(server, may_fail=True) as clients:
            others = clients[CLIENTS // 2 :]
            for fault in FAULTS:
                async with asyncio.TaskGroup() as group:
                    asking = [group.create_task(_ask(client, f"desk.{fault}")) for client in clients[: CLIENTS // 2]]
                    row = await measure(server, others, "desk.plain", arguments.rate, arguments.seconds)
                    for task in asking:
                        task.cancel()
                await _print(server, fault, row)
            started, numbers = monotonic(), iter(range(FLOOD))
            knocking = asyncio.gather(*(_knock(server, numbers) for _ in range(FLOOD_AT_ONCE)))
            row = await measure(server, others, "desk.plain", arguments.rate, arguments.seconds)
            await knocking
            await _print(server, "connect", row)
            print(f"{FLOOD} upgrades with guessed tokens in {monotonic() - started:.1f} s, at {FLOOD_RATE}")
    await runner.cleanup()


if __name__ == "__main__":
    begun = monotonic()
    asyncio.run(main())
    print(f"{monotonic() - begun:.0f} s")
