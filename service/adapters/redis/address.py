"""Where the Redis (or Valkey) servers are: what `broker.url` says of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

DEFAULT_PORTS = {"standalone": 6379, "sentinel": 26379, "cluster": 6379}


class Topology(Enum):
    """How the servers hang together."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Address:
    """Servers to ask. With SENTINEL these are the Sentinels, and `master` is the name that they watch it by."""

    topology: Topology
    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    database: int = 0
    master: str = ""


def parse(url: str) -> Address:
    """Reads redis://host:port/db, redis+sentinel://host:port,…/master/db, redis+cluster://host:port,… (rediss… for TLS).

    Raises ValueError with a sentence that repeats nothing of the address: it may hold a password.
    """
    parts = urlsplit(url.replace("[", "%5B").replace("]", "%5D"))  # several hosts in brackets are too much for it
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
    hosts = tuple(_host(place, DEFAULT_PORTS[topology.value]) for place in parts.netloc.split(","))
    if topology is Topology.STANDALONE and len(hosts) > 1:
        raise ValueError("names several servers; redis+sentinel:// and redis+cluster:// have several")
    path = [step for step in parts.path.split("/") if step]
    master = ""
    if topology is Topology.SENTINEL:
        if not path:
            raise ValueError("names no master; as in redis+sentinel://host:26379/mymaster")
        master = path.pop(0)
    database = _database(path)
    if topology is Topology.CLUSTER and database:
        raise ValueError("names a database; a Redis Cluster has only 0")
    return Address(topology, hosts, tls=scheme == "rediss", database=database, master=master)


def _host(place: str, default: int) -> tuple[str, int]:
    place = place.replace("%5B", "[").replace("%5D", "]")
    host, separator, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not separator:
        host, port = place, str(default)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (":" in bare) == (bare == host):  # IPv6 stands in brackets, and nothing else does
        raise ValueError("names a server that is not host:port; IPv6 as in [::1]:6379")
    host = bare
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError("names a server that is not host:port")
    return host, int(port)


def _database(path: list[str]) -> int:
    if not path:
        return 0
    if len(path) > 1 or not path[0].isdecimal():
        raise ValueError("ends in something that is not the number of a database")
    return int(path[0])
