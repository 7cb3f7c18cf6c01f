"""Whatever mix of peers that do not read, ask for much, or never finish what they send: the process stays within its bytes."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.load.server import CONFIG, POLL, Server, serving
from tests.support.files import as_many_as_may_be
from tests.support.harness import API_KEY, token
from tests.support.raw import CONTINUATION, HANDSHAKE, PING, TEXT, frame, text

pytestmark = pytest.mark.load

NODE_BYTES = 48 * 1024 * 1024
PEERS = 500
ROUNDS = 2
"""Each with a mix of its own: which peers do what is drawn by chance, from a seed that is printed."""
SECONDS = 3.0
"""Of one round, in which RSS is looked at all the time."""
FACTOR = 1.25
"""What Python and the allocator may take beside the bytes that are counted."""
EVENTS = 20
SIZE = 50_000
"""Bytes of each event of the history, so that a page has a megabyte."""
CHANNEL = "desk:1"


def page(number: int) -> bytes:
    return text(type="history", id=f"h{number}", channel=CHANNEL)


def greedy(chance: random.Random) -> bytes:
    """Asks for pages and reads none."""
    return b"".join(page(number) for number in range(chance.randint(1, 5)))


def slow(chance: random.Random) -> bytes:
    """Has joined a busy channel and reads nothing."""
    return text(type="ready") + text(type="subscribe", id="s", channel=CHANNEL)


def half(chance: random.Random) -> bytes:
    """Never finishes a message."""
    return frame(TEXT, b"x" * chance.randint(1, 64_000), fin=False)


def fragments(chance: random.Random) -> bytes:
    """Never finishes one in many fragments."""
    return frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x" * 100, fin=False) * chance.randint(1, 600)


def chatty(chance: random.Random) -> bytes:
    """Pings and small commands, and reads no answer."""
    return (frame(PING, b"x" * 100) + text(type="ping", id="p" * 60)) * chance.randint(10, 60)


def batches(chance: random.Random) -> bytes:
    """Batches of commands that are refused, and reads nothing."""
    return frame(TEXT, json.dumps([{"type": "nothing", "id": "x" * 60, "channel": CHANNEL}] * 90).encode()) * 5


def early(chance: random.Random) -> bytes:
    """Half a request."""
    return b"GET /ws?x=" + b"y" * chance.randint(1, 15_000)


def head(chance: random.Random) -> bytes:
    """Most of a head."""
    return b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: %s\r\n" % (b"y" * 8000) * chance.randint(1, 7)


def body(chance: random.Random) -> bytes:
    """A backend that drips."""
    return (
        b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
        + f"Authorization: Bearer {API_KEY}\r\n\r\n".encode()
        + b" " * chance.randint(1, 999_000)
    )


Peer = Callable[[random.Random], bytes]
UPGRADED: tuple[Peer, ...] = (greedy, greedy, slow, slow, half, fragments, chatty, batches)
PLAIN: tuple[Peer, ...] = (early, head, body)


@pytest.fixture(autouse=True)
def enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield


class Deaf:
    """Sends what it has to, and never reads."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._end = socket.socket()
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._end.setblocking(False)

    async def connect(self, port: int) -> None:
        await asyncio.get_running_loop().sock_connect(self._end, ("127.0.0.1", port))

    async def send(self) -> None:
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._end, self._data)

    def close(self) -> None:
        self._end.close()


def made(chance: random.Random, number: int) -> Deaf:
    kind = chance.choice((*UPGRADED, *PLAIN))
    if kind in PLAIN:
        return Deaf(kind(chance))
    bearer = {"Authorization": f"Bearer {token(f'user-{number}')}", "Host": "x"}
    lines = [f"{name}: {value}" for name, value in (HANDSHAKE | bearer).items()]
    return Deaf("\r\n".join(("GET /ws HTTP/1.1", *lines, "", "")).encode() + kind(chance))


async def publish(server: Server, events: int) -> None:
    """Large events, whether the node takes them or not."""
    url = f"http://127.0.0.1:{server.port}/api/v1/channels/{CHANNEL}/events"
    event: dict[str, Any] = {"type": "desk.note", "data": {"text": "x" * SIZE}}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as http:
        for _ in range(events):
            with suppress(aiohttp.ServerDisconnectedError):  # its body found no place
                async with http.post(url, json=event) as response:
                    assert response.status in (200, 503)


async def watch(server: Server, over: asyncio.Event) -> tuple[int, float]:
    """The most that the process took (KiB) and said that it holds (bytes)."""
    rss, held = 0, 0.0
    while not over.is_set():
        rss = max(rss, server.usage().rss)
        held = max(held, (await server.metrics())["outbox_bytes"])
        await asyncio.sleep(POLL)
    return rss, held


async def play(server: Server, chance: random.Random) -> tuple[int, float]:
    """A round with a mix of its own; see `watch`."""
    peers = [made(chance, number) for number in range(PEERS)]
    over = asyncio.Event()
    watching = asyncio.create_task(watch(server, over))
    sending: list[asyncio.Task[None]] = []
    try:
        for peer in peers:
            await peer.connect(server.port)
        sending = [asyncio.create_task(peer.send()) for peer in peers]
        async with asyncio.timeout(60):
            await publish(server, EVENTS * 3)
        await asyncio.sleep(SECONDS)
    finally:
        over.set()
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        for peer in peers:
            peer.close()
        seen = await watching
    return seen


async def test_no_mix_of_peers_makes_a_node_hold_more_than_its_bytes(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_debug(False)  # it would spend the clients' core on tracebacks
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    settings = CONFIG | {"outbox": {"node_bytes": NODE_BYTES}}
    async with serving(tmp_path, settings) as server:
        await publish(server, EVENTS)
        base = server.usage().rss
        idle = 4 * PEERS  # KiB, of an idle connection with all that is its own
        most = base + idle + FACTOR * NODE_BYTES / 1024
        print(f"\nseed={seed} base={base} KiB, at most {most:.0f} KiB")
        for _ in range(ROUNDS):
            rss, held = await play(server, chance)
            print(f"rss={rss} KiB held={held / 1024:.0f} KiB")
            assert rss <= most
            assert NODE_BYTES / 4 < held <= NODE_BYTES * 1.02, "small replies may pass the limit by a little"
            assert await server.is_empty() == {}
        assert await server.deaths() == 0
