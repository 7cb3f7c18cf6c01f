"""The nodes behind the proxies, and clients before them."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.e2e.engine import Engine
from tests.e2e.envoy import Envoy
from tests.e2e.haproxy import HAProxy
from tests.e2e.nginx import Nginx
from tests.e2e.traefik import Traefik
from tests.faults.node import Node
from tests.faults.tokens import token
from tests.stores.process import HOST
from tests.support.wire import ABNORMAL

ENGINES: tuple[type[Engine], ...] = (Nginx, HAProxy, Traefik, Envoy)
PROTOCOL = "tidewire.v1"
DEADLINE = 30.0
"""Seconds that any one step may take."""


@asynccontextmanager
async def nodes(broker: str, *settings: Mapping[str, str]) -> AsyncIterator[list[Node]]:
    """One running node for each of these settings."""
    made = [Node(f"node-{number}", broker, dict(own)) for number, own in enumerate(settings)]
    async with AsyncExitStack() as stack:
        for node in made:
            stack.push_async_callback(node.close)
        await asyncio.gather(*(node.start() for node in made))
        yield made


@dataclass
class Visitor:
    """A browser, as far as proxies see it: it keeps cookies, and follows the way that it is told."""

    http: aiohttp.ClientSession
    port: int
    tls: ssl.SSLContext | None = None
    user: str = "ann"
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The address of the front."""
        return f"{'https' if self.tls else 'http'}://{HOST}:{self.port}"

    async def get(self, path: str = "/ws", **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """A plain GET: status, headers, body."""
        async with self.http.get(
            f"{self.base}{path}", headers=self._headers(headers), ssl=self.tls or True
        ) as response:
            self._keep(response)
            return response.status, response.headers, await response.read()

    async def come(self, path: str = "/ws", *, bearer: str | None = None, **headers: str) -> Guest:
        """Opens a WebSocket and waits for its welcome. Raises aiohttp.WSServerHandshakeError."""
        async with asyncio.timeout(DEADLINE):
            authorization = {"Authorization": f"Bearer {bearer or token(self.user, 'red')}"}
            ws = await self.http.ws_connect(
                f"{self.base}{path}",
                protocols=(PROTOCOL,),
                headers=self._headers({**authorization, **headers}),
                ssl=self.tls or True,
                max_msg_size=0,
            )
            self._keep(ws._response)
            guest = Guest(ws)
            guest.welcome = await guest.expect("welcome")
            return guest

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {**more, **({"Cookie": cookie} if cookie else {})}

    def _keep(self, response: aiohttp.ClientResponse) -> None:
        for name, morsel in response.cookies.items():
            self.cookies[name] = morsel.value


@dataclass
class Guest:
    """An open WebSocket."""

    ws: aiohttp.ClientWebSocketResponse
    welcome: dict[str, Any] = field(default_factory=dict)

    async def send(self, **message: Any) -> None:
        """Sends one message."""
        await self.ws.send_str(json.dumps(message))

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this type with these fields; others are passed over."""
        async with asyncio.timeout(DEADLINE):
            while True:
                message = await self.ws.receive()
                assert message.type is aiohttp.WSMsgType.TEXT, f"{message.type.name} {self.ws.close_code}"
                content = json.loads(message.data)
                for one in content if isinstance(content, list) else [content]:
                    if one["type"] == kind and all(one.get(name) == value for name, value in fields.items()):
                        found: dict[str, Any] = one
                        return found

    async def gone(self) -> int:
        """Waits for its end; the code of the close frame that came, 1006 without one."""
        code = ABNORMAL
        while not self.ws.closed:
            message = await self.ws.receive()
            # Not the client's own word: it says 1006 where it could no longer answer.
            if message.type is aiohttp.WSMsgType.CLOSE:
                code = int(message.data)
        return code

    async def leave(self) -> None:
        """Ends it."""
        await self.ws.close()


@asynccontextmanager
async def visiting() -> AsyncIterator[aiohttp.ClientSession]:
    """What visitors share. It keeps no connection, so that every request is balanced by itself, and no cookie of anyone's."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield http


@asynccontextmanager
async def running(engines: Sequence[Engine]) -> AsyncIterator[Sequence[Engine]]:
    """Starts them side by side."""
    async with AsyncExitStack() as stack:
        for engine in engines:
            stack.callback(engine.end)
        await asyncio.gather(*(engine.start() for engine in engines))
        yield engines
