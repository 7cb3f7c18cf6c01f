"""The reign of a server: what an epoch belongs to, beside the server itself (channel.lua, reign.lua, ADR 31)."""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache

from redis.crc import key_slot

from service.adapters.redis.connections.link import Argument, Link, ReplyError
from service.adapters.redis.lua.scripts import REIGN

RUN = 20
"""Characters of a generation that name the process; more of them tell its lives as a master apart."""
_MICROSECONDS = 1_000_000


class Seat:
    """What this node remembers of whoever was the master at one place, across connections.

    A node that comes from another server begins a reign: what that one had accepted is not here, and nobody else may know.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = ""
        self._reign = 0
        self._link: Link | None = None
        """The newest link; when it was heard last, its server may have accepted something."""
        self._looked = 0.0
        """Loop time at which the server was found to be what it is."""
        self._clock: tuple[int, float] | None = None
        """What the server's clock showed (microseconds since 1970), and the loop's time then."""

    async def take(self, link: Link, server: str, key: str | None) -> bool:
        """Gives a link the generation of its server, from `key` (None: no key is known there). Whether it is a new one.

        Raises LinkLost and TimeoutError.
        """
        since = self._came_from_another(link, server)
        reign = await self._ask(link, key, since)
        if reign is None:
            reign = self._reign
            if since is not None:
                # A full server, say. Our own calls begin new epochs, and a later look writes the key.
                reign = max(self._reign, self._floor(), time.time_ns() // 1_000) + 1
        self._reign = max(self._reign, reign)
        self._server, self._link, self._looked = server, link, self._loop.time()
        return self._name(link, server)

    def learn(self, link: Link, generation: str) -> bool:
        """Takes in what a script has said of the link's server. Whether it is new."""
        server, _, reign = generation.partition(":")
        has_risen = int(reign or 0) > self._reign
        self._reign = max(self._reign, int(reign or 0))
        if has_risen or _is_new_name(server):  # else the next look begins a reign
            self._server = server
        return self._name(link, server)

    def _name(self, link: Link, server: str) -> bool:
        before = link.generation
        link.generation = f"{server}:{self._reign}" if self._reign else server
        return link.generation != before

    def _came_from_another(self, link: Link, server: str) -> float | None:
        """Seconds since when another server may have accepted something for this node; None if there was none.

        A process that has become a master again has a new name, and needs no reign; unless it has lost that name again, as it
        does when it has had no replica for an hour.
        """
        if self._link is None or server == self._server:
            return None
        if server[:RUN] == self._server[:RUN] and _is_new_name(server):
            return None
        return self._loop.time() - (self._looked if link is self._link else self._link.heard)

    async def _ask(self, link: Link, key: str | None, since: float | None) -> int | None:
        """The reign as the server has it; None if it refuses."""
        if key is None:
            return None
        age = "" if since is None else int(since * 1_000) + 1
        command: tuple[Argument, ...] = ("EVALSHA", REIGN.sha, 1, key, self._reign, age, self._floor())
        try:
            try:
                reign, micros = await link.call(*command)
            except ReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                await link.call("SCRIPT", "LOAD", REIGN.text)
                reign, micros = await link.call(*command)
        except ReplyError:
            return None
        self._clock = (micros, self._loop.time())
        return int(reign)

    def _floor(self) -> int:
        """What the clock of the last server shows by now: numbers rise also where the next one's is behind."""
        if self._clock is None:
            return 0
        micros, at = self._clock
        return micros + int((self._loop.time() - at) * _MICROSECONDS)


def _is_new_name(server: str) -> bool:
    """Whether it is the name of a life as a master that followed one as a replica: no life before had it."""
    return len(server) > RUN


@lru_cache(maxsize=1_000)
def tag_in(slot: int) -> str:
    """A hash tag whose keys are in a slot of a Cluster."""
    number = 0
    while key_slot(b"%d" % number) != slot:
        number += 1
    return str(number)
