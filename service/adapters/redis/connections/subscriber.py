"""One server's subscriptions: joined anew after every reconnect, and whoever was interrupted is told."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.link import Link, LinkLost
from service.adapters.redis.connections.reconnecting_link import ReconnectingLink
from service.adapters.redis.connections.topology import Place, Servers
from service.aio.eager_start import ensure_task

CHUNK = 500
"""Names in one SUBSCRIBE; a Cluster takes one, as each may be in a slot of its own."""


@dataclass(slots=True, eq=False)
class SubscriptionState:
    """A name that is wanted."""

    confirmed: bool = False
    """Whether the server has confirmed it, on this link."""
    delivered: bool = False
    """Whether any server ever has: then a time without is an interruption."""
    held: bool = False
    """Whether a `subscribe` has returned."""
    callers: int = 0
    """Calls of `subscribe` that have not returned."""
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class Subscriber:
    """Gets every message of the names that are wanted from one server.

    `on_message(name, message)`; `on_interrupted(names)` when they are subscribed again after a time in which they were not;
    `on_dismissed(name, redirection)` when the server gave a subscription up, or refused one: its slot has moved;
    `on_pong`: see Link.
    """

    def __init__(
        self,
        servers: Servers,
        config: RedisConfig,
        *,
        locate: Callable[[], Awaitable[Place]],
        on_message: Callable[[bytes, bytes], None],
        on_interrupted: Callable[[Collection[bytes]], None],
        on_lost: Callable[[], None],
        on_dismissed: Callable[[bytes, str | None], None],
        on_pong: Callable[[float], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._on_message = on_message
        self._on_interrupted = on_interrupted
        self._on_dismissed = on_dismissed
        sharded = servers.is_cluster
        self._subscribe, self._unsubscribe = ("SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        self._chunk = 1 if sharded else CHUNK
        self._wanted: dict[bytes, SubscriptionState] = {}
        # What was told on this link and is not answered yet, in order: whether to subscribe, and which name.
        self._told: deque[tuple[bool, bytes]] = deque()
        # How often each name is to be subscribed among these: only the last answer says how things stand.
        self._joining: Counter[bytes] = Counter()
        self._changed = asyncio.Event()
        self._link: Link | None = None
        """The newest link, from the moment at which names are subscribed on it."""
        self._rejoining = False
        self._back: dict[bytes, None] = {}
        """Names whose interruption is over and has not been told yet."""
        self.line = ReconnectingLink(
            "messages",
            servers,
            config,
            locate=locate,
            on_up=self._rejoin,
            on_lost=on_lost,
            on_push=self._pushed,
            on_pong=on_pong,
        )

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, name: bytes) -> bool:
        return name in self._wanted

    @property
    def names(self) -> Sequence[bytes]:
        """What is wanted."""
        return list(self._wanted)

    @property
    def waiting(self) -> int:
        """Calls of `subscribe` that wait for a confirmation."""
        return sum(len(wish.waiting) for wish in self._wanted.values())

    async def subscribe(self, name: bytes) -> None:
        """Returns when the server has confirmed. Raises TimeoutError; whoever gets an exception calls `let_go`."""
        deadline = self._loop.time() + self._config.timeout
        if self.line.is_hopeless:
            raise TimeoutError(self.line.reason)
        wish = self._wanted.get(name)
        if wish is None:
            wish = self._wanted[name] = SubscriptionState()
            self._ask_for(name)
        if not wish.confirmed:
            confirmed = self._loop.create_future()
            wish.waiting.append(confirmed)
            wish.callers += 1
            try:
                await ensure_task()
                async with asyncio.timeout_at(deadline):
                    await confirmed
            finally:
                wish.callers -= 1
                if confirmed in wish.waiting:  # whichever server's the wish is by now
                    wish.waiting.remove(confirmed)
        wish.held = True

    def let_go(self, name: bytes) -> None:
        """Unsubscribes, unless somebody's `subscribe` has returned or will."""
        wish = self._wanted.get(name)
        if wish is not None and not wish.held and not wish.callers:
            self.unsubscribe(name)

    def unsubscribe(self, name: bytes) -> None:
        """From here on nothing of the name is delivered; harmless if it is not wanted."""
        wish = self._wanted.pop(name, None)
        if wish is None:
            return
        _resolve(wish)
        self._tell_off(name)
        self._changed.set()

    def release(self, names: Collection[bytes]) -> Mapping[bytes, SubscriptionState]:
        """Lets names go that another server has now, for it to `adopt` them."""
        released = {name: wish for name in names if (wish := self._wanted.pop(name, None)) is not None}
        for name in released:
            self._tell_off(name)
        self._changed.set()
        return released

    def adopt(self, names: Mapping[bytes, SubscriptionState]) -> None:
        """Takes names over from another server; what was missed meanwhile is an interruption."""
        for name, wish in names.items():
            wish.confirmed = False
            self._wanted[name] = wish
            self._ask_for(name)

    def ask_again(self, name: bytes) -> None:
        """Subscribes what the server gave up, if it is still wanted here."""
        wish = self._wanted.get(name)
        if wish is not None and not wish.confirmed and name not in self._joining:
            self._ask_for(name)

    def end(self, error: Exception) -> None:
        """Nobody waits for a confirmation any more."""
        for wish in self._wanted.values():
            for waiting in wish.waiting:
                if not waiting.done():
                    waiting.set_exception(error)
        self._wanted.clear()

    # --- the server's side --------------------------------------------------------------------------------------------

    def _ask_for(self, *names: bytes) -> None:
        if self._link is not None:
            self._joining.update(names)
            self._told.extend((True, name) for name in names)
            self._link.tell(self._subscribe, *names)

    def _tell_off(self, name: bytes) -> None:
        if self._link is not None:
            self._told.append((False, name))
            self._link.tell(self._unsubscribe, name)

    async def _rejoin(self, link: Link) -> None:
        """Before a fresh link is used: everything that is wanted is subscribed on it and confirmed."""
        self._link = link
        self._told.clear()
        self._joining.clear()
        link.on_refusal = self._refused
        for wish in self._wanted.values():
            wish.confirmed = False
        names = self.names
        for start in range(0, len(names), self._chunk):
            self._ask_for(*names[start : start + self._chunk])
        self._rejoining = True
        lost = asyncio.ensure_future(link.lost.wait())
        try:
            async with asyncio.timeout(self._config.timeout):
                while not all(wish.confirmed for wish in self._wanted.values()):
                    if lost.done():
                        raise LinkLost(link.fault or "the connection was lost while subscribing")
                    self._changed.clear()
                    changed = asyncio.ensure_future(self._changed.wait())
                    try:
                        await asyncio.wait((lost, changed), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
        finally:
            lost.cancel()
            self._rejoining = False
        self._tell_back()

    def _pushed(self, push: list[Any]) -> None:
        kind, name = push[0], push[1]
        if kind in (b"message", b"smessage"):
            if name in self._wanted:
                self._on_message(name, push[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            if self._answered() == (True, name) and not self._joining[name]:
                self._confirmed(name)
        elif self._told and self._told[0] == (False, name):
            self._answered()
        else:
            self._dismissed(name)

    def _answered(self) -> tuple[bool, bytes]:
        """What the server answers now: it does so in the order in which it was told."""
        subscribing, name = self._told.popleft() if self._told else (False, b"")
        if subscribing:
            self._joining[name] -= 1
            if not self._joining[name]:
                del self._joining[name]
        return subscribing, name

    def _confirmed(self, name: bytes) -> None:
        wish = self._wanted.get(name)
        if wish is None:
            return  # the unsubscription is on its way
        wish.confirmed = True
        if wish.delivered:
            if not self._back and not self._rejoining:
                self._loop.call_soon(self._tell_back)
            self._back[name] = None
        wish.delivered = True
        _resolve(wish)
        self._changed.set()

    def _tell_back(self) -> None:
        if not self._rejoining and self._back:
            names, self._back = [name for name in self._back if name in self._wanted], {}
            self._on_interrupted(names)

    def _dismissed(self, name: bytes, redirection: str | None = None) -> None:
        wish = self._wanted.get(name)
        if wish is not None:
            wish.confirmed = False
            self._on_dismissed(name, redirection)

    def _refused(self, error: str) -> bool:
        if not error.startswith("MOVED ") or not self._told:
            return False
        subscribing, name = self._answered()
        if subscribing:
            self._dismissed(name, error)
        return True


def _resolve(wish: SubscriptionState) -> None:
    waiting, wish.waiting = wish.waiting, []
    for future in waiting:
        if not future.done():
            future.set_result(None)
