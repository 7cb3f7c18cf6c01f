"""Rendezvous hashing: which node does a piece of work, without asking the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from service.core.channel import ChannelKey


def ranking(channel: ChannelKey, nodes: Iterable[str]) -> Sequence[str]:
    """Returns the nodes in the order in which they should do the work of a channel. The same on all nodes."""
    return sorted(nodes, key=lambda node: blake2b(f"{node} {channel.name}".encode(), digest_size=8).digest())
