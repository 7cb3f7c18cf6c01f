"""Which server to talk to: the one there is, the one that the Sentinels call master, or a Cluster's owner of a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.crc import key_slot
from redis.exceptions import RedisError

from service.adapters.redis.address import Topology
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.link import Link, LinkLost, ReplyError

Place = tuple[str, int]


class NoServer(ConnectionError):  # noqa: N818  # as LinkLost
    """Nobody could say, or reach, which server to talk to."""


class Servers:
    """Knows the places of servers, and opens connections to them."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._address = config.address
        self._tls = config.ssl_context()
        self._slots: list[tuple[int, int, Place]] = []
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def is_cluster(self) -> bool:
        """Whether channels live on different servers."""
        return self._address.topology is Topology.CLUSTER

    @property
    def places(self) -> frozenset[Place]:
        """The masters of the Cluster, as last heard of."""
        return frozenset(place for _, _, place in self._slots)

    async def place(self) -> Place:
        """The one server, or the master that the Sentinels name. Raises NoServer."""
        return self._address.hosts[0] if self._address.topology is Topology.STANDALONE else await self._master()

    def owner(self, name: str) -> Place:
        """The Cluster's server for a key, as last heard of. Raises NoServer."""
        slot = key_slot(name.encode())
        for low, high, place in self._slots:
            if low <= slot <= high:
                return place
        raise NoServer(f"no server of the Redis Cluster has slot {slot}")

    async def refresh(self) -> None:
        """Asks the Cluster anew; whoever asks meanwhile shares the answer. Raises NoServer."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._ask_cluster(), name="cluster slots")
        task = self._refreshing
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and self._refreshing is task:
                self._refreshing = None

    async def close(self) -> None:
        """Lets go of what is under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    async def open(self, place: Place, link: Link) -> None:
        """Connects a link to a server, logs in and makes sure that it is a master. Raises NoServer with the reason."""
        config = self._config
        host, port = place
        try:
            async with asyncio.timeout(config.silence):
                await asyncio.get_running_loop().create_connection(
                    lambda: link, host, port, ssl=self._tls, server_hostname=host if self._tls else None
                )
                if config.password is not None:
                    await link.call("AUTH", config.user or "default", config.password)
                if config.address.database:
                    await link.call("SELECT", config.address.database)
                with suppress(ReplyError):  # not every ACL allows it, and it only helps whoever looks at CLIENT LIST
                    await link.call("CLIENT", "SETNAME", config.prefix)
                await learn_generation(link)
        except (OSError, TimeoutError, ReplyError) as error:
            link.abort()
            raise NoServer(_reason(place, error)) from error
        except asyncio.CancelledError:
            link.abort()
            raise

    async def _master(self) -> Place:
        config = self._config
        sentinels = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types here
            list(config.address.hosts),
            sentinel_kwargs={
                "username": config.sentinel_user,
                "password": config.sentinel_password,
                "socket_timeout": config.silence,
                "socket_connect_timeout": config.silence,
                **config.redis_py(),
            },
        )
        try:
            async with asyncio.timeout(config.silence):
                host, port = await sentinels.discover_master(config.address.master)
        except (MasterNotFoundError, RedisError, OSError, TimeoutError) as error:
            raise NoServer(f"no Sentinel names a master of {config.address.master!r}") from error
        finally:
            await asyncio.gather(*(one.aclose() for one in sentinels.sentinels), return_exceptions=True)
        return str(host), int(port)

    async def _ask_cluster(self) -> None:
        known = list(dict.fromkeys((*(place for _, _, place in self._slots), *self._address.hosts)))
        for place in known:
            try:
                self._slots = await self._slots_from(place)
            except NoServer:
                continue
            if self._slots:
                return
        raise NoServer("no server of the Redis Cluster tells its slots")

    async def _slots_from(self, place: Place) -> list[tuple[int, int, Place]]:
        config = self._config
        client = Redis(
            host=place[0],
            port=place[1],
            username=config.user,
            password=config.password,
            socket_timeout=config.silence,
            socket_connect_timeout=config.silence,
            **config.redis_py(),
        )
        try:
            async with asyncio.timeout(config.silence):
                answer: Sequence[Any] = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]  # as above
        except (RedisError, OSError, TimeoutError) as error:
            raise NoServer(_reason(place, error)) from error
        finally:
            await client.aclose()
        return _read_slots(answer, place)


def _read_slots(answer: Any, asked: Place) -> list[tuple[int, int, Place]]:
    if isinstance(answer, dict):  # redis-py's own reading: {(low, high): {"primary": (host, port, …), …}}
        found = [(low, high, one["primary"][0], one["primary"][1]) for (low, high), one in answer.items()]
    else:
        found = [(entry[0], entry[1], entry[2][0], entry[2][1]) for entry in answer]
    return [(int(low), int(high), (_text(host) or asked[0], int(port))) for low, high, host, port in found]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def learn_generation(link: Link) -> None:
    """Asks the server who it is. Raises NoServer if it is a replica."""
    info = _fields(await link.call("INFO", "server") + b"\n" + await link.call("INFO", "replication"))
    if info.get("role") != "master":
        raise NoServer("the server is a replica")
    link.confirmed = asyncio.get_running_loop().time()
    link.generation = f"{info.get('run_id', '')[:20]}{info.get('master_replid', '')[:20]}"


def _fields(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, separator, value in pairs if separator}


def _reason(place: Place, error: BaseException) -> str:
    """A sentence without anything that the server was told."""
    where = f"{place[0]} port {place[1]}"
    if isinstance(error, NoServer):
        return f"{where}: {error}"
    if isinstance(error, ReplyError):
        return f"{where} refuses: {str(error).partition(' ')[0]}"
    if isinstance(error, TimeoutError):
        return f"{where} does not answer"
    if isinstance(error, LinkLost):
        return f"{where} closed the connection"
    return f"{where} cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
