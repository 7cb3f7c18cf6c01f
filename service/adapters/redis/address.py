"""Parses `broker.url` for Redis and Valkey: which servers, and how they form one store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

DEFAULT_PORTS = {"standalone": 6379, "sentinel": 26379, "cluster": 6379}


class Topology(Enum):
    """How the servers form one store."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The servers to contact first. With SENTINEL these are the Sentinels, and `master` is the name that they watch."""

    topology: Topology
    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    database: int = 0
    master: str = ""


def parse_redis_url(url: str) -> RedisAddress:
    """Parses redis://host:port/db, redis+sentinel://host:port,…/master/db or redis+cluster://host:port,… (rediss… for TLS).

    Raises ValueError. Its text is a predicate ("holds …") that does not quote the URL, which may hold a password.
    """
    parts = urlsplit(url.replace("[", "%5B").replace("]", "%5D"))  # urlsplit refuses several hosts in brackets
    scheme, _, kind = parts.scheme.partition("+")
    try:
        topology = Topology(kind) if kind else Topology.STANDALONE
    except ValueError:
        topology = None
    if topology is None or scheme not in ("redis", "rediss") or kind == "standalone":
        raise ValueError("is none of redis://, redis+sentinel://, redis+cluster:// (or rediss…, for TLS)")
    if "@" in parts.netloc:
        raise ValueError("holds a user or password; they belong into broker.user and broker.password")
    if parts.query or parts.fragment:
        raise ValueError("holds a query; further options are settings of their own (broker.…)")
    hosts = tuple(_parse_host(host, DEFAULT_PORTS[topology.value]) for host in parts.netloc.split(","))
    if topology is Topology.STANDALONE and len(hosts) > 1:
        raise ValueError("names several servers; redis+sentinel:// and redis+cluster:// have several")
    path = [part for part in parts.path.split("/") if part]
    master = ""
    if topology is Topology.SENTINEL:
        if not path:
            raise ValueError("names no master; as in redis+sentinel://host:26379/mymaster")
        master = path.pop(0)
    database = _parse_database(path)
    if topology is Topology.CLUSTER and database:
        raise ValueError("names a database; a Redis Cluster has only 0")
    return RedisAddress(topology, hosts, tls=scheme == "rediss", database=database, master=master)


def _parse_host(text: str, default_port: int) -> tuple[str, int]:
    text = text.replace("%5B", "[").replace("%5D", "]")
    host, separator, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not separator:
        host, port = text, str(default_port)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (":" in bare) == (bare == host):  # brackets are for IPv6, and only for it
        raise ValueError("names a server that is not host:port; IPv6 as in [::1]:6379")
    if not bare or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError("names a server that is not host:port")
    return bare, int(port)


def _parse_database(path: list[str]) -> int:
    if not path:
        return 0
    if len(path) > 1 or not path[0].isdecimal():
        raise ValueError("ends in something that is not the number of a database")
    return int(path[0])
