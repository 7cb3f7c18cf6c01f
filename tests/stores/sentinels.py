"""A master, its replicas, and three Sentinels that promote one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hiredis

from tests.stores.process import HOST, Group, ServerFailedError, until
from tests.stores.redis_server import PASSWORD, USER, Flavour, Persistence, RedisServer

FAILOVER = 30.0
"""Seconds for a failover."""
_QUORUM = 2


class Sentinel(RedisServer):
    """A Sentinel that monitors `master`."""

    def __init__(self, flavour: Flavour, master: RedisServer, name: str, password: str | None) -> None:
        super().__init__(flavour, password=password)
        self._master = master
        self._name = name
        self.name = f"sentinel-{flavour}"

    def _settings(self) -> list[str]:
        name = self._name
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"dir {self.folder}",
            f"user {USER} on >{PASSWORD} ~* &* +@all",
            f"sentinel monitor {name} {HOST} {self._master.port} {_QUORUM}",
            f"sentinel auth-user {name} {USER}",
            f"sentinel auth-pass {name} {PASSWORD}",
            f"sentinel sentinel-user {USER}",
            f"sentinel sentinel-pass {PASSWORD}",
            f"sentinel down-after-milliseconds {name} 1000",
            f"sentinel failover-timeout {name} 3000",
            f"sentinel parallel-syncs {name} 1",
        ]
        if self._password is not None:
            lines.append(f"requirepass {self._password}")
        return lines

    def _command_line(self) -> list[str]:
        return [*super()._command_line(), "--sentinel"]

    async def seen(self, what: str) -> list[dict[str, str]]:
        """Returns the `REPLICAS` or other `SENTINELS` that it knows."""
        return [_fields(entry) for entry in await self.command("SENTINEL", what, self._name)]

    async def master_port(self) -> int:
        """Returns the port of the master that it names."""
        return int((await self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name))[1])


class Sentinels(Group):
    """`servers` (one master, the rest its replicas) and `sentinels`: a master is given up after a second without an answer.

    `password` is asked for by the servers, `sentinel_password` by the Sentinels; `config` is the servers'.
    """

    def __init__(
        self,
        flavour: Flavour = "redis",
        *,
        replicas: int = 1,
        name: str = "main",
        persistence: Persistence | None = None,
        password: str | None = None,
        sentinel_password: str | None = None,
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        users = {_link(number): _link_rules() for number in range(replicas + 1)}
        self.servers = [
            RedisServer(
                flavour,
                persistence=persistence,
                password=password,
                users=users,
                config={"masteruser": _link(number), **(config or {})},
            )
            for number in range(replicas + 1)
        ]
        self.sentinels = [Sentinel(flavour, self.servers[0], name, sentinel_password) for _ in range(3)]

    @property
    def url(self) -> str:
        """The setting `broker.url`."""
        return f"redis+sentinel://{','.join(f'{HOST}:{sentinel.port}' for sentinel in self.sentinels)}/{self.name}"

    async def master(self) -> RedisServer:
        """Returns the master that the first Sentinel names that answers."""
        sentinel = next(sentinel for sentinel in self.sentinels if sentinel.awake)
        return self._server(await sentinel.master_port())

    async def replicas(self) -> list[RedisServer]:
        """Returns the other servers, dead ones included."""
        master = await self.master()
        return [server for server in self.servers if server is not master]

    async def failover(self) -> RedisServer:
        """Promotes a replica of a healthy master. Returns the new master."""
        before = await self.master()

        async def begun() -> bool:
            try:
                return bool(await self.sentinels[0].command("SENTINEL", "FAILOVER", self.name) == "OK")
            except hiredis.ReplyError:
                return False  # NOGOODSLAVE, INPROG: not yet

        await until(begun, "the Sentinels begin a failover", within=FAILOVER)
        return await self.promoted(before)

    async def promoted(self, before: RedisServer) -> RedisServer:
        """Returns the master once all Sentinels name one other than `before`, and it is promoted."""

        async def other() -> bool:
            ports = {await sentinel.master_port() for sentinel in self.sentinels if sentinel.awake}
            if len(ports) != 1 or before.port in ports:
                return False
            return bool((await self._server(ports.pop()).command("ROLE"))[0] == "master")

        await until(other, f"the Sentinels promote another than port {before.port}", within=FAILOVER)
        return await self.master()

    async def settled(self) -> None:
        """Returns when a failover is possible: every Sentinel knows every other, and sees every replica follow the master.

        All servers must run. Meanwhile the Sentinels check more often than by default: otherwise a returned master would take
        ten seconds or more.
        """
        try:
            await self._periods(look=0.1, talk=0.1)
            await until(self._is_settled, "the Sentinels see each other and all replicas", within=FAILOVER)
        finally:
            await self._periods(look=10, talk=2)

    async def cut(self, replica: RedisServer) -> None:
        """Cuts a replica's link to the master: it lags from now on. Sentinels may promote it in the next ten seconds only."""
        # Deletes the replica's user at the master, which ends the connection. Sentinels would repair a wrong REPLICAOF.
        master = await self.master()
        assert await master.command("ACL", "DELUSER", self._link_of(replica)) == 1

        async def apart() -> bool:
            return bool((await replica.command("ROLE"))[3] != "connected")

        await until(apart, f"port {replica.port} loses its master")

    async def mend(self, replica: RedisServer) -> None:
        """Restores the link; returns when the replica has caught up."""
        master = await self.master()
        await master.command("ACL", "SETUSER", self._link_of(replica), *_link_rules().split())

        async def caught_up() -> bool:
            role = await replica.command("ROLE")
            return bool(role[3] == "connected" and role[4] >= (await master.command("ROLE"))[1])

        await until(caught_up, f"port {replica.port} catches up with its master")

    async def _build(self) -> None:
        master, *replicas = self.servers
        await self._launch(master)
        for replica in replicas:
            replica.follow(master)
        await self._launch(*replicas)

        async def followed() -> bool:
            return len((await master.command("ROLE"))[2]) == len(replicas)

        # A Sentinel looks for replicas at its start, and then only every ten seconds.
        await until(followed, "the replicas follow their master")
        await self._launch(*self.sentinels)
        await self.settled()

    async def _periods(self, *, look: float, talk: float) -> None:
        """Sets the seconds between two checks of a server, and between two messages to other Sentinels."""
        for sentinel in self.sentinels:
            if sentinel.awake:
                periods = ("INFO-PERIOD", int(look * 1000), "PUBLISH-PERIOD", int(talk * 1000))
                await sentinel.command("SENTINEL", "DEBUG", *periods)

    async def _is_settled(self) -> bool:
        if len({await sentinel.master_port() for sentinel in self.sentinels}) != 1:
            return False
        for sentinel in self.sentinels:
            replicas = [entry for entry in await sentinel.seen("REPLICAS") if entry["master-link-status"] == "ok"]
            others = await sentinel.seen("SENTINELS")
            if len(replicas) != len(self.servers) - 1 or len(others) != len(self.sentinels) - 1:
                return False
            if not all(_up(entry) for entry in replicas + others):
                return False
        # Sentinels may know an outdated role of a server that has returned, so the server is asked, too.
        roles = [await replica.command("ROLE") for replica in await self.replicas()]
        return all(role[0] == "slave" and role[3] == "connected" for role in roles)

    def _server(self, port: int) -> RedisServer:
        for server in self.servers:
            if server.port == port:
                return server
        raise ServerFailedError(f"a Sentinel names port {port}, which is none of ours")

    def _link_of(self, replica: RedisServer) -> str:
        return _link(self.servers.index(replica))


def _link(number: int) -> str:
    """Returns the user of a server's replication link. Each server has its own, so that each link can be cut alone."""
    return f"replica-{number}"


def _link_rules() -> str:
    return f"on >{PASSWORD} resetchannels -@all +psync +replconf +ping"


def _fields(flat: list[Any]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _up(entry: dict[str, str]) -> bool:
    return not {"s_down", "o_down", "disconnected", "master"} & set(entry["flags"].split(","))
