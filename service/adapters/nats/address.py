"""Parses `broker.url` for NATS."""

from __future__ import annotations

from urllib.parse import urlsplit


def parse_nats_url(url: str) -> tuple[str, ...]:
    """Returns the servers of nats://host:port,host:port (tls://… for TLS), each as a URL of its own.

    Raises ValueError. Its text is a predicate ("holds …") that does not quote the URL, which may hold a password.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("holds a user or password; they belong into broker.user and broker.password")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("holds more than servers; as in nats://host:4222,host:4222")
    servers = parts.netloc.split(",")
    for server in servers:
        host, _, port = server.rpartition(":") if ":" in server.rpartition("]")[2] else (server, "", "4222")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError("names a server that is not host:port")
    return tuple(f"{parts.scheme}://{server}" for server in servers)
