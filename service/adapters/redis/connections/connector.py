"""Opens connections to Redis servers: TLS, login, and the check that the server is a master."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any, NamedTuple

from service.adapters.redis.address import Topology
from service.adapters.redis.config import Login, RedisConfig
from service.adapters.redis.connections.errors import Endpoint, NoServerError, no_server
from service.adapters.redis.connections.link import Link, ReplyError
from service.adapters.store.config import ServerTimeObserver

MAX_QUERY_TIMEOUT = 1.0
"""Seconds that a server gets to say where the others are; less with a short `broker.timeout`."""
QUERIES_PER_CALL = 4
"""Such queries that fit into the timeout of a call."""
RUN_ID_LENGTH = 20
"""Characters of a server's name that identify the process. Those after them identify its life as a master."""


class ServerIdentity(NamedTuple):
    """What a server says about itself."""

    name: str
    """Identifies the process. For a master that was a replica before, it also identifies this life as a master (as
    lua/channel.lua does)."""
    clock: tuple[float, float] | None
    """The server's time (seconds since the Unix epoch), and the seconds that its answer took."""


class Connector:
    """Connects to servers by the settings."""

    def __init__(self, config: RedisConfig, on_server_time: ServerTimeObserver | None = None) -> None:
        """`on_server_time` gets the time of the servers' clocks."""
        self._config = config
        self._on_server_time = on_server_time
        self._tls: (
            ssl.SSLContext | None
        )  # no value until `load_certificates`, so nothing connects without TLS by mistake
        self.query_timeout = min(MAX_QUERY_TIMEOUT, config.silence_timeout, config.call_timeout / QUERIES_PER_CALL)
        """Seconds for one query of `ask`."""

    def load_certificates(self) -> None:
        """Reads the TLS files, before the first connection. Raises OSError for unusable ones."""
        self._tls = self._config.ssl_context()

    async def open(self, endpoint: Endpoint, link: Link) -> ServerIdentity:
        """Connects a link, logs in, and makes sure that the server is a master. Raises NoServerError."""
        config = self._config
        try:
            async with asyncio.timeout(config.silence_timeout):
                await self._connect(endpoint, link, config.login)
                if config.address.database:
                    await link.call("SELECT", config.address.database)
                with suppress(ReplyError):  # not every ACL allows it, and only operators who read CLIENT LIST need it
                    await link.call("CLIENT", "SETNAME", config.prefix)
                return await self.identify(endpoint, link)
        except (OSError, ValueError, TimeoutError, ReplyError) as error:
            link.abort()
            raise no_server(endpoint, error) from error
        except asyncio.CancelledError:
            link.abort()
            raise

    async def identify(self, endpoint: Endpoint, link: Link) -> ServerIdentity:
        """Asks a server who it is, and reports its time. Raises NoServerError if it is no master of our topology."""
        identity = await _identify(link, is_cluster=self._config.address.topology is Topology.CLUSTER)
        if self._on_server_time is not None and identity.clock is not None:
            self._on_server_time(f"{endpoint[0]}:{endpoint[1]}", *identity.clock)
        return identity

    async def ask(self, endpoint: Endpoint, login: Login, *command: str) -> Any:
        """Sends one command on a connection of its own. Raises NoServerError."""
        config = self._config
        link = Link(
            ping_interval=config.ping_interval,
            silence_timeout=config.silence_timeout,
            call_timeout=config.call_timeout,
        )
        try:
            async with asyncio.timeout(self.query_timeout):
                await self._connect(endpoint, link, login)
                return await link.call(*command)
        except (OSError, ValueError, TimeoutError, ReplyError) as error:
            raise no_server(endpoint, error) from error
        finally:
            link.abort()

    async def _connect(self, endpoint: Endpoint, link: Link, login: Login) -> None:
        host, port = endpoint
        await asyncio.get_running_loop().create_connection(
            lambda: link, host, port, ssl=self._tls, server_hostname=host if self._tls else None
        )
        if login is not None:
            await link.call("AUTH", *login)


async def _identify(link: Link, *, is_cluster: bool) -> ServerIdentity:
    loop = asyncio.get_running_loop()
    asked = loop.time()
    info = _fields(await link.call("INFO", "server", "replication"))
    micros = info.get("server_time_usec", "")
    clock = (int(micros) / 1e6, loop.time() - asked) if micros.isdecimal() else None
    if info.get("role", "master") != "master":
        raise NoServerError("is a replica, and nobody else is named as the master")
    mode = info.get("redis_mode") or info.get("server_mode")
    if mode == "sentinel":
        raise NoServerError("is a Sentinel; broker.url must begin with redis+sentinel://", is_permanent=True)
    if mode == "cluster" and not is_cluster:
        raise NoServerError(
            "belongs to a Redis Cluster; broker.url must begin with redis+cluster://", is_permanent=True
        )
    was_replica = info.get("master_replid2", "0").strip("0") != ""
    run_id = info.get("run_id", "")[:RUN_ID_LENGTH]
    return ServerIdentity(run_id + (info.get("master_replid", "")[:RUN_ID_LENGTH] if was_replica else ""), clock)


def _fields(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, separator, value in pairs if separator}
