"""The generation of a server: an epoch belongs to one, and ends with it (lua/channel.lua, lua/term.lua, ADR 31).

A generation is a server's name and its term. The name changes with the process, and with each life as a master. The
term is a number that a node raises when it connects to this server after another one, whose latest events may be
missing here.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from service.adapters.redis.connections.connector import RUN_ID_LENGTH
from service.adapters.redis.connections.link import Argument, Link, ReplyError
from service.adapters.redis.lua.scripts import TERM

_MICROSECONDS = 1_000_000


class GenerationTracker:
    """Remembers the master of one shard across connections, and sets the generation of each link to it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = ""
        self._term = 0
        self._link: Link | None = None
        """The newest link. Its server may have accepted events until the link's last data."""
        self._identified = 0.0
        """Loop time at which the server last said who it is."""
        self._clock: tuple[int, float] | None = None
        """The server's time (microseconds since the Unix epoch), and the loop time then."""

    async def identify(self, link: Link, server: str, term_key: str | None) -> bool:
        """Sets the generation of a link to a server, by the term in `term_key` (None: no key is known there).

        Returns whether the generation is new to the link. Raises LinkLost and TimeoutError.
        """
        last_use = self._last_use_of_other_server(link, server)
        term = await self._read_term(link, term_key, last_use)
        if term is None:
            term = self._term
            if last_use is not None:
                # A full server refuses to store the term. This node's calls begin new epochs all the same, and the next
                # successful call of `identify` stores it.
                term = max(self._term, self._min_term(), time.time_ns() // 1_000) + 1
        self._term = max(self._term, term)
        self._server, self._link, self._identified = server, link, self._loop.time()
        return self._set_generation(link, server)

    def learn(self, link: Link, generation: str) -> bool:
        """Sets the generation that a script has replied. Returns whether it is new to the link."""
        server, _, term = generation.partition(":")
        has_risen = int(term or 0) > self._term
        self._term = max(self._term, int(term or 0))
        if has_risen or _has_own_life(server):  # else the next `identify` begins a term
            self._server = server
        return self._set_generation(link, server)

    def _set_generation(self, link: Link, server: str) -> bool:
        before = link.generation
        link.generation = f"{server}:{self._term}" if self._term else server
        return link.generation != before

    def _last_use_of_other_server(self, link: Link, server: str) -> float | None:
        """Loop time until which another server may have accepted events of this node; None if there was none.

        A process that has become a master again has a new name, so it needs no new term. It loses that name when it has
        had no replica for an hour; then it needs a term.
        """
        if self._link is None or server == self._server:
            return None
        if server[:RUN_ID_LENGTH] == self._server[:RUN_ID_LENGTH] and _has_own_life(server):
            return None
        return self._identified if link is self._link else self._link.last_data

    async def _read_term(self, link: Link, key: str | None, last_use: float | None) -> int | None:
        """Returns the server's term; None if the server refuses. With `last_use`, begins a new term unless one has
        begun after it."""
        if key is None:
            return None
        try:
            try:
                term, micros = await self._call_term(link, key, last_use)
            except ReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                await link.call("SCRIPT", "LOAD", TERM.text)
                term, micros = await self._call_term(link, key, last_use)
        except ReplyError:
            return None
        self._clock = (micros, self._loop.time())
        return int(term)

    def _call_term(self, link: Link, key: str, last_use: float | None) -> asyncio.Future[Any]:
        # The server subtracts the age from its time, so the command must not wait for a busy event loop: `last_use` would seem
        # later than it was, and this node would begin a term and new epochs although another node's term is new enough.
        age: Argument = "" if last_use is None else int((self._loop.time() - last_use) * 1_000) + 1
        reply = link.call("EVALSHA", TERM.sha, 1, key, self._term, age, self._min_term())
        link.flush()
        return reply

    def _min_term(self) -> int:
        """The present time by the last server's clock. Terms must rise even if the next server's clock is behind."""
        if self._clock is None:
            return 0
        micros, at = self._clock
        return micros + int((self._loop.time() - at) * _MICROSECONDS)


def _has_own_life(server: str) -> bool:
    """Whether a server's name identifies its life as a master: one that followed a life as a replica."""
    return len(server) > RUN_ID_LENGTH
