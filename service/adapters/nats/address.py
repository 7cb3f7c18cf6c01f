"""Where the NATS servers are: what `broker.url` says of them."""

from __future__ import annotations

from urllib.parse import urlsplit


def parse(url: str) -> tuple[str, ...]:
    """The servers of nats://host:port,host:port (tls://… for TLS), each as an address of its own.

    Raises ValueError with a sentence that repeats nothing of the address: it may hold a password.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("holds a user or password; they belong into broker.user and broker.password")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("holds more than servers; as in nats://host:4222,host:4222")
    places = parts.netloc.split(",")
    for place in places:
        host, _, port = place.rpartition(":") if ":" in place.rpartition("]")[2] else (place, "", "4222")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError("names a server that is not host:port")
    return tuple(f"{parts.scheme}://{place}" for place in places)
