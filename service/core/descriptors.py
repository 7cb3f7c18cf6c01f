"""Divides the file descriptors of a process: a reserve, and a number for each kind of connection. Pure."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from service.core.limits import Limits

RESERVE = 64
"""Descriptors that client connections never use: for the ops listener, the broker, keys and files. If more are in use at the
start, the reserve is larger, so that the process can reconnect to all shards of a cluster."""
SPARE = 8
"""Descriptors of the reserve beyond those in use at the start: for the ops listener, name lookups and files."""
MIN_HTTP_CONNECTIONS = 16
"""Minimum number of connections that are not WebSockets, if descriptors are few."""
ENOUGH_HTTP_CONNECTIONS = 256
"""The same minimum if descriptors are many, although `limits.connections` could use all others. A refused client needs one to get
the refusal."""
MIN_CLIENTS = 8
"""With fewer client connections of both kinds together, a process does not start."""
TYPICAL_IN_USE = 20
"""Descriptors open before the first connection, with Redis or NATS. Assumed until the process can count them."""


class TooFewFilesError(Exception):
    """The limit of open files is too low to start. The message says how many files the process needs."""


@dataclass(frozen=True, slots=True)
class DescriptorPlan:
    """The numbers of connections of each kind that fit together into the limit of open files."""

    limit: int
    """Files that the process may open."""
    in_use: int
    """Descriptors that are open before the first connection."""
    reserve: int
    """Descriptors that client connections never use."""
    connections: int
    http_connections: int
    ops_connections: int

    @property
    def client_descriptors(self) -> int:
        """Descriptors for client connections of both kinds together."""
        return self.limit - self.in_use - self.reserve

    @property
    def first_reserved(self) -> int:
        """Lowest descriptor number in the reserve. The system assigns the lowest free number: if it assigns this one, all lower
        ones are in use."""
        return self.limit - self.reserve


def plan(limit: int, in_use: int, limits: Limits) -> DescriptorPlan:
    """Divides `limit` descriptors, of which `in_use` are open: at most what `limits` allow, at least one for each kind."""
    reserve = max(min(max(RESERVE, 2 * in_use), limit // 4), min(in_use + SPARE, limit - in_use - MIN_CLIENTS))
    available = max(2, limit - in_use - reserve)
    min_http = min(
        limits.http_connections,
        max(min(MIN_HTTP_CONNECTIONS, available // 2), min(available // 8, ENOUGH_HTTP_CONNECTIONS)),
    )
    connections = min(limits.connections, available - min_http)
    return DescriptorPlan(
        limit,
        in_use,
        reserve,
        connections,
        http_connections=min(limits.http_connections, available - connections),
        ops_connections=max(1, min(limits.ops_connections, reserve // 2)),
    )


def min_limit(in_use: int) -> int:
    """Returns the limit of open files below which a process does not start."""
    return in_use + (in_use + SPARE) + MIN_CLIENTS


def sufficient_limit(in_use: int, limits: Limits) -> int:
    """Returns the lowest limit of open files that does not lower `limits.connections`."""
    return (
        in_use + max(RESERVE, 2 * in_use) + limits.connections + min(limits.http_connections, ENOUGH_HTTP_CONNECTIONS)
    )


def check_limit(limit: float, in_use: int, limits: Limits) -> None:
    """Raises TooFewFilesError if a process with this limit of open files should not start."""
    needed = min_limit(in_use)
    if limit < needed:
        raise TooFewFilesError(
            f"this process may open {int(limit)} files, but it needs {needed} to start: {in_use} for itself, {in_use + SPARE} in "
            f"reserve for health, metrics and the broker, and {MIN_CLIENTS} for clients. Raise the hard limit of open files "
            f"(ulimit -Hn, LimitNOFILE); limits.connections ({limits.connections}) needs {sufficient_limit(in_use, limits)}"
        )


def is_exhaustion(error: BaseException) -> bool:
    """True if the error means that no descriptor is left, in this process or on this machine."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


EXHAUSTED = "this process has no file descriptor left; raise the hard limit of open files (ulimit -Hn, LimitNOFILE)"
"""Message for such an error. The system's own message blames the file or the connection."""
