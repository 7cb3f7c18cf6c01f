"""How the file descriptors of a process are divided: a reserve, and a number for each kind of connection. Pure."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from service.core.limits import Limits

RESERVE = 64
"""Descriptors that connections of the public listener never use: for the ops listener, the broker, keys, files. More where more
are in use at the start, such as connections to the shards of a cluster, as each may have to be made anew."""
SPARE = 8
"""Of the reserve, at least, beyond what is in use at the start: for the ops listener, name lookups and files."""
MIN_HTTP_CONNECTIONS = 16
"""Places for connections that are not WebSockets, however few descriptors there are, …"""
ENOUGH_HTTP_CONNECTIONS = 256
"""… and that are enough where `limits.connections` takes all the rest: who is above that needs one to be told so."""
MIN_ROOM = 8
"""Connections of the public listener, of both kinds, below which a process is not worth starting."""
USUALLY_IN_USE = 20
"""Descriptors that are open before the first connection, with Redis or NATS. Assumed before and where they cannot be counted."""


class TooFewFilesError(Exception):
    """The process may open too few files to start; the message says how many it needs."""


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
    reserve = max(min(max(RESERVE, 2 * in_use), limit // 4), min(in_use + SPARE, limit - in_use - MIN_ROOM))
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


def least_limit(in_use: int) -> int:
    """The limit below which a process does not start."""
    return in_use + (in_use + SPARE) + MIN_ROOM


def sufficient_limit(in_use: int, limits: Limits) -> int:
    """The lowest limit at which `limits.connections` is not lowered."""
    return (
        in_use + max(RESERVE, 2 * in_use) + limits.connections + min(limits.http_connections, ENOUGH_HTTP_CONNECTIONS)
    )


def check_limit(limit: float, in_use: int, limits: Limits) -> None:
    """Raises TooFewFilesError if a process with this limit should not start."""
    least = least_limit(in_use)
    if limit < least:
        raise TooFewFilesError(
            f"this process may open {int(limit)} files, but it needs {least} to start: {in_use} for itself, {in_use + SPARE} in "
            f"reserve for health, metrics and the broker, and {MIN_ROOM} for clients. Raise the hard limit of open files "
            f"(ulimit -Hn, LimitNOFILE); limits.connections ({limits.connections}) needs {sufficient_limit(in_use, limits)}"
        )


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that no descriptor is left, in this process or on this machine."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


EXHAUSTED = "this process has no file descriptor left; raise the hard limit of open files (ulimit -Hn, LimitNOFILE)"
"""What to say of such an error: the system's words blame whatever a descriptor was wanted for."""
