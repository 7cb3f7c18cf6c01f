"""What the file descriptors of a process are for: so many for connections, the rest in reserve. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from service.core.limits import Limits

RESERVE = 64
"""Descriptors that connections of the public listener never take: for the ops listener, the broker, keys, files. More where more
are in use at the start, such as connections to the shards of a cluster, as each may have to be made anew."""
MIN_HTTP_CONNECTIONS = 16
"""Places for connections that are not WebSockets, however few descriptors there are, …"""
ENOUGH_HTTP_CONNECTIONS = 256
"""… and that are enough where `limits.connections` takes all the rest: who is above that needs one to be told so."""


@dataclass(frozen=True, slots=True)
class DescriptorPlan:
    """How many of each there may be, so that all fit the limit of open files together."""

    limit: int
    """Files that the process may open."""
    in_use: int
    """Of these, open before the first connection."""
    reserve: int
    """Of these, never a connection's of the public listener."""
    connections: int
    http_connections: int
    ops_connections: int

    @property
    def room(self) -> int:
        """Connections of the public listener, of both kinds: while there are few of one, there may be more of the other."""
        return self.limit - self.in_use - self.reserve

    @property
    def first_reserved(self) -> int:
        """The lowest number of a descriptor in reserve: the system gives the lowest that is free, so who gets this one has
        found all below it taken."""
        return self.limit - self.reserve


def plan(limit: int, in_use: int, limits: Limits) -> DescriptorPlan:
    """What fits `limit` when `in_use` are open already: at most what `limits` allow, and at least one of each."""
    reserve = min(max(RESERVE, 2 * in_use), limit // 4)
    room = max(2, limit - in_use - reserve)
    least_http = min(
        limits.http_connections, max(min(MIN_HTTP_CONNECTIONS, room // 2), min(room // 8, ENOUGH_HTTP_CONNECTIONS))
    )
    connections = min(limits.connections, room - least_http)
    return DescriptorPlan(
        limit,
        in_use,
        reserve,
        connections,
        http_connections=min(limits.http_connections, room - connections),
        ops_connections=max(1, min(limits.ops_connections, reserve // 2)),
    )
