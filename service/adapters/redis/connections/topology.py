"""Which server to talk to: the one there is, the one that the Sentinels call master, or a Cluster's owner of a slot."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from contextlib import suppress
from typing import Any

from redis.crc import key_slot

from service.adapters.redis.address import Topology
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.error_replies import meaning
from service.adapters.redis.connections.generation import RUN, tag_in
from service.adapters.redis.connections.link import Link, LinkLost, ReplyError
from service.adapters.store.config import ServerTime
from service.core.descriptors import EXHAUSTED, is_exhaustion

Place = tuple[str, int]
Login = tuple[str, str] | None
"""User and password, see RedisConfig."""

ASK_SECONDS = 1.0
"""That a server has to say where the others are, at most; with a short `broker.timeout` a share of that."""
SHARE = 4
"""How many such questions fit into a call's deadline."""
LATE_SECONDS = 0.05
"""For which Sentinels that said nothing the last time are waited for, when all others have answered."""
NEXT_SECONDS = 0.2
"""Before another server of a Cluster is asked beside one that has not answered yet."""
HINT_SECONDS = 10.0
"""For which a redirection holds against servers that have not heard of it."""


class NoServer(ConnectionError):  # noqa: N818  # as LinkLost
    """Nobody could say, or reach, which server to talk to. `refused` if another try will not change that."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Servers:
    """Knows the places of servers, and opens connections to them."""

    def __init__(self, config: RedisConfig, on_time: ServerTime | None = None) -> None:
        """`on_time` gets what the servers' clocks show."""
        self._config = config
        self._on_time = on_time
        self._address = config.address
        self._tls: ssl.SSLContext | None  # without a value, so that nobody connects without TLS by mistake
        self._slots: list[tuple[int, int, Place]] = []
        self._hints: dict[int, tuple[Place, float]] = {}
        self._share = min(ASK_SECONDS, config.silence, config.timeout / SHARE)
        self._silent: set[Place] = set()
        """Sentinels that said nothing when they were asked last."""
        self._told_by: Place | None = None
        """The server of a Cluster that told the slots last."""
        self._finding: asyncio.Task[Place] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.version = 0
        """Rises with every change of who owns what."""

    def read_certificates(self) -> None:
        """Before the first connection. Raises OSError for files that are no use."""
        self._tls = self._config.ssl_context()

    @property
    def is_cluster(self) -> bool:
        """Whether channels live on different servers."""
        return self._address.topology is Topology.CLUSTER

    @property
    def places(self) -> frozenset[Place]:
        """The masters of the Cluster, as last heard of."""
        return frozenset((*(place for _, _, place in self._slots), *(place for place, _ in self._hints.values())))

    async def place(self) -> Place:
        """The one server, or the master that the Sentinels name; whoever asks meanwhile shares the answer. Raises NoServer."""
        if self._address.topology is Topology.STANDALONE:
            return self._address.hosts[0]
        if self._finding is None:
            self._finding = asyncio.get_running_loop().create_task(self._master(), name="redis master")
            self._finding.add_done_callback(self._found)
        return await asyncio.shield(self._finding)

    def _found(self, task: asyncio.Task[Place]) -> None:
        self._finding = None
        if not task.cancelled():
            task.exception()  # whoever waits gets it; nobody may be left who does

    def owner(self, name: str) -> Place:
        """The Cluster's server for a key, as last heard of. Raises NoServer."""
        slot = key_slot(name.encode())
        if slot in self._hints:
            return self._hints[slot][0]
        for low, high, place in self._slots:
            if low <= slot <= high:
                return place
        raise NoServer(f"no server of the Redis Cluster has slot {slot}")

    def reign_key(self, place: Place | None) -> str | None:
        """Where a server keeps its reign: in a Cluster in the first slot that it owns; None if it owns none."""
        prefix = self._config.prefix
        if place is None:
            return f"{prefix}:reign"
        slot = next((low for low, _, owner in self._slots if owner == place), None)
        return None if slot is None else f"{prefix}:reign:{{{tag_in(slot)}}}"

    def redirected(self, error: str, asked: Place | None) -> None:
        """Takes in a redirection: `MOVED slot host:port`."""
        _, slot, where = error.split(" ")[:3]
        host, _, port = where.rpartition(":")
        place = (host or (asked[0] if asked else ""), int(port))
        if self._hints.get(int(slot), (None, 0.0))[0] != place:
            self.version += 1
        self._hints[int(slot)] = (place, asyncio.get_running_loop().time())

    async def refresh(self) -> None:
        """Asks the Cluster anew; whoever asks meanwhile shares the answer. Raises NoServer."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._ask_cluster(), name="cluster slots")
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # whoever waits gets it; nobody may be left who does

    async def close(self) -> None:
        """Lets go of what is under way."""
        for task in (self._finding, self._refreshing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def open(self, place: Place, link: Link) -> None:
        """Connects a link to a server, logs in and makes sure that it is a master. Raises NoServer with the reason."""
        config = self._config
        try:
            async with asyncio.timeout(config.silence):
                await self._connect(place, link, config.login)
                if config.address.database:
                    await link.call("SELECT", config.address.database)
                with suppress(ReplyError):  # not every ACL allows it, and it only helps whoever looks at CLIENT LIST
                    await link.call("CLIENT", "SETNAME", config.prefix)
                link.generation = await ask_server(link, cluster=self.is_cluster)
                self.note_time(place, link)
        except (OSError, ValueError, TimeoutError, ReplyError) as error:
            link.abort()
            raise _no_server(place, error) from error
        except asyncio.CancelledError:
            link.abort()
            raise

    def note_time(self, place: Place, link: Link) -> None:
        """Passes on what the server's clock showed when it was asked who it is."""
        if self._on_time is not None and link.clock_reading is not None:
            self._on_time(f"{place[0]}:{place[1]}", *link.clock_reading)

    async def _connect(self, place: Place, link: Link, login: Login) -> None:
        host, port = place
        await asyncio.get_running_loop().create_connection(
            lambda: link, host, port, ssl=self._tls, server_hostname=host if self._tls else None
        )
        if login is not None:
            await link.call("AUTH", *login)

    async def _ask(self, place: Place, login: Login, within: float, *words: str) -> Any:
        """One question on a connection of its own. Raises NoServer."""
        config = self._config
        link = Link(ping=config.ping, silence=config.silence, timeout=config.timeout)
        try:
            async with asyncio.timeout(within):
                await self._connect(place, link, login)
                return await link.call(*words)
        except (OSError, ValueError, TimeoutError, ReplyError) as error:
            raise _no_server(place, error) from error
        finally:
            link.abort()

    # --- Sentinel -----------------------------------------------------------------------------------------------------

    async def _master(self) -> Place:
        """The master that most Sentinels name: one that was cut off may name an old one.

        All are asked at once. Those that said nothing the last time are not waited for when all others have answered.
        """
        hosts = self._address.hosts
        asked = {asyncio.ensure_future(self._named_by(place)): place for place in hosts}
        silent = self._silent
        named: Counter[Place] = Counter()
        trouble: list[NoServer] = []
        waiting = set(asked)
        try:
            while waiting and not (named and 2 * named.most_common(1)[0][1] > len(hosts)):
                late = named and all(asked[task] in silent for task in waiting)
                done, waiting = await asyncio.wait(
                    waiting, timeout=LATE_SECONDS if late else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    try:
                        named[task.result()] += 1
                        silent.discard(asked[task])
                    except NoServer as error:
                        trouble.append(error)
                        silent.add(asked[task])
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not named:
            reasons = "; ".join(dict.fromkeys(map(str, trouble)))
            raise NoServer(
                f"no Sentinel names a master of {self._address.master!r}: {reasons}",
                refused=all(error.refused for error in trouble),
            )
        return named.most_common(1)[0][0]

    async def _named_by(self, sentinel: Place) -> Place:
        words = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.master)
        answer = await self._ask(sentinel, self._config.sentinel_login, self._share, *words)
        if answer is None:
            raise NoServer(f"{_named(sentinel)} knows no master of that name", refused=True)
        host, port = answer
        return host.decode(), int(port)

    # --- Cluster ------------------------------------------------------------------------------------------------------

    async def _ask_cluster(self) -> None:
        """Whoever told the slots last is asked first; each of the others when those before it take their time."""
        servers = dict.fromkeys((*(place for _, _, place in self._slots), *self._address.hosts))
        if self._told_by in servers:
            servers = {self._told_by: None, **servers}
        trouble: list[NoServer] = []
        left = list(servers)
        waiting: dict[asyncio.Task[Any], Place] = {}
        try:
            while left or waiting:
                if left:
                    place = left.pop(0)
                    question = self._ask(place, self._config.login, self._share, "CLUSTER", "SLOTS")
                    waiting[asyncio.ensure_future(question)] = place
                done, _ = await asyncio.wait(
                    waiting, timeout=NEXT_SECONDS if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    place = waiting.pop(task)
                    try:
                        answer = task.result()
                    except NoServer as error:
                        trouble.append(error)
                        continue
                    if answer:
                        self._told_by = place
                        self._take(sorted((low, high, _place(master, place)) for low, high, master, *_ in answer))
                        return
                    trouble.append(NoServer(f"{_named(place)} knows no slots"))
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        raise NoServer(
            "; ".join(dict.fromkeys(map(str, trouble))),
            refused=bool(trouble) and all(error.refused for error in trouble),
        )

    def _take(self, slots: list[tuple[int, int, Place]]) -> None:
        old = asyncio.get_running_loop().time() - HINT_SECONDS
        masters = {place for _, _, place in slots}
        before = (self._slots, self._hints)
        self._slots = slots
        # What a redirection told may be newer than what this server knows.
        self._hints = {slot: hint for slot, hint in self._hints.items() if hint[1] > old and hint[0] in masters}
        self.version += before != (self._slots, self._hints)


def _place(node: list[Any], asked: Place) -> Place:
    return ((node[0] or b"").decode() or asked[0], node[1])  # without a host: the one that was asked


async def ask_server(link: Link, *, cluster: bool) -> str:
    """Asks the server who it is. Raises NoServer if it is a replica. channel.lua tells it in the same way."""
    asked = asyncio.get_running_loop().time()
    info = _fields(await link.call("INFO", "server", "replication"))
    if (micros := info.get("server_time_usec", "")).isdecimal():
        link.clock_reading = (int(micros) / 1e6, asyncio.get_running_loop().time() - asked)
    if info.get("role", "master") != "master":
        raise NoServer("is a replica, and nobody else is named as the master")
    mode = info.get("redis_mode") or info.get("server_mode")
    if mode == "sentinel":
        raise NoServer("is a Sentinel; broker.url must begin with redis+sentinel://", refused=True)
    if mode == "cluster" and not cluster:
        raise NoServer("belongs to a Redis Cluster; broker.url must begin with redis+cluster://", refused=True)
    was_replica = info.get("master_replid2", "0").strip("0") != ""
    return info.get("run_id", "")[:RUN] + (info.get("master_replid", "")[:RUN] if was_replica else "")


def _fields(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, separator, value in pairs if separator}


# --- reasons ----------------------------------------------------------------------------------------------------------

_REFUSALS = {
    "WRONGPASS": "refuses the user or the password (broker.user, broker.password)",
    "NOAUTH": "wants a password (broker.password)",
    "NOPERM": "does not let the user do what is needed; docs/guarantees.md names the ACL rules",
}
_WORDED = {
    "DB index is out of range": "has no database of that number",
    "cluster support disabled": "belongs to no Redis Cluster, but broker.url begins with redis+cluster://",
}


def said(error: BaseException) -> str:
    """What a server said or did, without anything that it was told."""
    if isinstance(error, LinkLost):
        word, text = "", str(error)
    elif isinstance(error, ReplyError):
        word, text = str(error).partition(" ")[0], str(error)
    elif isinstance(error, TimeoutError):
        return "does not answer"
    elif isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted (broker.ca): {error.verify_message}"
    elif isinstance(error, ssl.SSLError):
        return f"fails TLS: {error.reason or type(error).__name__}"
    elif is_exhaustion(error):
        return f"cannot be reached: {EXHAUSTED}"
    else:
        return f"cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
    for part, sentence in _WORDED.items():
        if part in text:
            return sentence
    return _REFUSALS.get(word or text.partition(" ")[0], f"refuses: {meaning(text) or word}" if word else text)


def is_refusal(error: BaseException) -> bool:
    """Whether another try will not change it."""
    if isinstance(error, NoServer):
        return error.refused
    if isinstance(error, ssl.SSLError):
        return True
    text = str(error)
    if isinstance(error, LinkLost) and text.startswith("TLS: "):
        return True
    return text.partition(" ")[0] in _REFUSALS or any(part in text for part in _WORDED)


def _named(place: Place) -> str:
    return f"{place[0]} port {place[1]}"


def _no_server(place: Place, error: BaseException) -> NoServer:
    if isinstance(error, NoServer):
        return NoServer(f"{_named(place)} {error}", refused=error.refused)
    return NoServer(f"{_named(place)} {said(error)}", refused=is_refusal(error))
