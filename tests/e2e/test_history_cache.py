"""History pages behind a cache: nginx with `proxy_cache`, as a CDN has it, and as docs/history-pages.md configures it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from grp import getgrgid
from pwd import getpwuid
from typing import Any

import pytest

from tests.docs.blocks import DOCS, blocks
from tests.e2e.programs import WHOLE, program
from tests.stores.process import HOST, MissingProgramError, Server, until
from tests.support.api_client import ask
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, OTHER_API_KEY, Running, serving, token

LOG = "log:1"

_CONFIGURATION = """\
daemon off;
user {user} {group};
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {cache}
  server {{
    listen 127.0.0.1:{port};
    add_header X-Cache $upstream_cache_status always;
    {pages}
    location = /history {{
      proxy_pass http://127.0.0.1:{origin};
      proxy_cache pages;  # no page: nothing may be kept, even so
    }}
  }}
}}
"""


[BLOCK] = [block.text for block in blocks(DOCS / "history-pages.md") if block.language == "nginx"]


class CachingNginx(Server):
    """A cache before one service."""

    def __init__(self, origin: int) -> None:
        super().__init__("nginx")
        self._origin = origin

    def _prepare(self) -> None:
        user, group = getpwuid(os.getuid()).pw_name, getgrgid(os.getgid()).gr_name  # else root's worker becomes nobody
        local = BLOCK.replace("/var/cache/nginx", str(self.folder)).replace("tidewire;", f"127.0.0.1:{self._origin};")
        cache, _, locations = local.partition("\n\n")
        text = _CONFIGURATION.format(
            folder=self.folder,
            port=self.port,
            origin=self._origin,
            user=user,
            group=group,
            cache=cache,
            pages=locations.partition("location = /history")[0],
        )
        (self.folder / "nginx.conf").write_text(text)

    def _command_line(self) -> list[str]:
        folder = self.folder
        return [str(program("nginx")), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.transport.abort()
        return True


class Edge:
    """The service, the cache before it, and a reader."""

    def __init__(self, origin: Running, port: int) -> None:
        self.origin = origin
        self.base = f"http://{HOST}:{port}"

    async def fill(self, id: str = "e", key: str = API_KEY, channel: str = LOG) -> None:
        """Publishes two pages of events, each of which says whose it is."""
        await self.origin.publish(
            channel, [{"type": "log.entry", "id": f"{id}-{n}", "data": key} for n in range(200)], key
        )

    async def address(self, tenant: str = "default", channel: str = LOG) -> str:
        """Asks for history as a user, through the cache. Returns the address of a page."""
        headers = {"Authorization": f"Bearer {token('ann', grants=['log:*'], tenant=tenant)}"}
        async with self.origin.http.get(
            f"{self.base}/history?channel={channel}&limit=100", headers=headers
        ) as response:
            assert (response.status, response.headers["X-Cache"]) == (200, "MISS"), "no cache may keep it"
            return str((await response.json())["older"])

    async def read(self, address: str, **headers: str) -> tuple[int, str, str]:
        """Reads a page. Returns the status, what the cache did, and the body."""
        async with self.origin.http.get(f"{self.base}{address}", headers=headers) as response:
            return response.status, response.headers.get("X-Cache", ""), await response.text()

    async def until_asked(self, address: str) -> tuple[int, str, str]:
        """Reads a page until the cache asks the service for it, because its age is over. nginx counts whole seconds."""
        found: tuple[int, str, str] = (0, "HIT", "")

        async def has_asked() -> bool:
            nonlocal found
            found = await self.read(address)
            return found[1] != "HIT"

        await until(has_asked, "the cache asks the service")
        return found

    async def requests(self, outcome: str) -> float:
        """The requests for pages that have reached the service."""
        return await self.origin.metric("history_pages_total", outcome=outcome)


@asynccontextmanager
async def edge(**groups: Any) -> AsyncIterator[Edge]:
    """A service behind the cache. Without nginx, the test is skipped, or fails where nothing may be missing."""
    try:
        program("nginx")
    except MissingProgramError as error:
        (pytest.fail if WHOLE else pytest.skip)(str(error))
    async with serving(**groups) as origin, CachingNginx(int(origin.url.rpartition(":")[2])) as nginx:
        yield Edge(origin, nginx.port)


async def test_readers_share_one_request_to_the_service() -> None:
    async with edge() as stand:
        await stand.fill()
        address = await stand.address()
        assert address == await stand.address(), "two users get the same one"
        answers = await asyncio.gather(*(stand.read(address) for _ in range(20)))
        assert {(status, body) for status, _, body in answers} == {(200, answers[0][2])}
        assert [cache for _, cache, _ in answers].count("MISS") == 1
        assert (await stand.read(address))[1] == "HIT"
        assert await stand.requests("served") == 1


async def test_tenants_never_share_a_page() -> None:
    async with edge() as stand:
        await stand.fill()
        await stand.fill(key=OTHER_API_KEY)
        keys = {"default": API_KEY, "other": OTHER_API_KEY}
        for tenant, rival in (("default", "other"), ("other", "default")):
            address = await stand.address(tenant)
            status, cache, body = await stand.read(address)
            assert (status, cache, keys[tenant] in body, keys[rival] in body) == (200, "MISS", True, False)
            for _ in range(2):
                refused = await stand.read(address.replace(f"/{tenant}/", f"/{rival}/"))
                assert refused[:2] == (403, "MISS"), "no cache keeps an error"


async def test_cache_asks_again_after_the_age_and_learns_what_was_taken_back() -> None:
    same, removed, purged = "log:1", "log:2", "log:3"
    async with edge(history_pages={"max_age": 1}) as stand:
        for channel in (same, removed, purged):
            await stand.fill(channel=channel)
        addresses = {channel: await stand.address(channel=channel) for channel in (same, removed, purged)}
        for address in addresses.values():
            assert (await stand.read(address))[:2] == (200, "MISS")
        assert (await ask(stand.origin, "DELETE", f"/channels/{removed}/events/e-7?offset=8")).status == 200
        assert (await ask(stand.origin, "DELETE", f"/channels/{purged}/history")).status == 200
        await stand.fill("f", channel=purged)
        assert (await stand.read(await stand.address(channel=purged)))[:2] == (200, "MISS"), (
            "the epoch is in the address"
        )
        assert (await stand.until_asked(addresses[same]))[:2] == (200, "REVALIDATED")
        assert await stand.requests("not_modified") == 1
        status, cache, body = await stand.until_asked(addresses[removed])
        assert (status, cache, "event.removed" in body) == (200, "EXPIRED", True)
        assert (await stand.until_asked(addresses[purged]))[:2] == (404, "EXPIRED")


async def test_compressed_page_is_revalidated() -> None:
    async with edge() as stand:
        await stand.fill()
        address = await stand.address()
        async with stand.origin.http.get(f"{stand.base}{address}", headers={"Accept-Encoding": "gzip"}) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            tag = response.headers["ETag"]
        assert tag.startswith("W/"), "nginx weakens the tag of what it compresses"
        assert (await stand.read(address, **{"If-None-Match": tag}))[0] == 304
        async with stand.origin.http.get(f"{stand.origin.url}{address}", headers={"If-None-Match": tag}) as response:
            assert response.status == 304


async def test_end_of_an_address_ends_the_page_of_a_revoked_user() -> None:
    clock = FakeClock()
    async with edge(clock=clock, history_pages={"address_ttl": 60, "max_age": 1}) as stand:
        await stand.fill()
        address = (await ask(stand.origin, "GET", f"/channels/{LOG}/history?limit=100")).body["older"]
        assert (await stand.read(address))[0] == 200
        assert (await ask(stand.origin, "POST", "/users/ann/revoke", {})).status == 200
        clock.advance(60)
        assert (await stand.until_asked(address))[:2] == (403, "EXPIRED")
