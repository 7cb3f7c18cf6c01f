"""The subscriptions at one server. They are made again after every reconnect, and interruptions are reported."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.adapters.redis.connections.errors import Endpoint
from service.adapters.redis.connections.link import Link, LinkCallbacks, LinkLost
from service.adapters.redis.connections.reconnecting_link import ReconnectingLink
from service.adapters.store.config import StoreConfig
from service.aio.eager_start import ensure_task

MAX_NAMES = 500
"""Names in one SUBSCRIBE. SSUBSCRIBE gets one, as each name may be in another slot."""


@dataclass(slots=True, eq=False)
class SubscriptionState:
    """A name that callers have subscribed to, or are about to."""

    is_confirmed: bool = False
    """Whether the server has confirmed the subscription on the current link."""
    was_confirmed: bool = False
    """True once a server has confirmed; a later time without a subscription is an interruption."""
    is_held: bool = False
    """Whether a call of `subscribe` has returned."""
    callers: int = 0
    """Calls of `subscribe` that have not returned."""
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def resolve(self, error: Exception | None = None) -> None:
        """Wakes all callers that wait for the confirmation."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)


@dataclass(frozen=True, slots=True)
class SubscriberCallbacks:
    """What a subscriber reports; all are called on the event loop and must not raise."""

    on_message: Callable[[bytes, bytes], None]
    """A message: the name, and the payload."""
    on_interrupted: Callable[[Collection[bytes]], None]
    """These names are subscribed again, after an interruption."""
    on_revoked: Callable[[bytes, str | None], None]
    """The server has ended or refused a subscription, because the slot has moved. With the redirection, if it sent one."""
    on_pong: Callable[[float], None]
    """Seconds from a ping to its answer, which arrives after all earlier messages."""
    on_lost: Callable[[], None]
    """The connection has ended."""


class _SentCommands:
    """The (un)subscribe commands that the server has not answered, in order: it answers them in that order."""

    def __init__(self) -> None:
        self._commands: deque[tuple[bool, bytes]] = deque()
        """Whether it subscribes, and the name."""
        self._subscribing: Counter[bytes] = Counter()

    def __bool__(self) -> bool:
        return bool(self._commands)

    def clear(self) -> None:
        """Drops all, because the connection is new."""
        self._commands.clear()
        self._subscribing.clear()

    def add_subscribe(self, names: Iterable[bytes]) -> None:
        """Adds a SUBSCRIBE."""
        names = list(names)
        self._subscribing.update(names)
        self._commands.extend((True, name) for name in names)

    def add_unsubscribe(self, name: bytes) -> None:
        """Adds an UNSUBSCRIBE."""
        self._commands.append((False, name))

    def is_next_unsubscribe(self, name: bytes) -> bool:
        """Whether the server answers an UNSUBSCRIBE of this name next."""
        return bool(self._commands) and self._commands[0] == (False, name)

    def is_subscribing(self, name: bytes) -> bool:
        """Whether a SUBSCRIBE of this name is not answered yet. Only the last answer shows the state."""
        return name in self._subscribing

    def pop(self) -> tuple[bool, bytes]:
        """Removes the command that the server answers now."""
        is_subscribe, name = self._commands.popleft() if self._commands else (False, b"")
        if is_subscribe:
            self._subscribing[name] -= 1
            if not self._subscribing[name]:
                del self._subscribing[name]
        return is_subscribe, name


class Subscriber:
    """Receives every message of the subscribed names from one server."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        is_sharded: bool,
        connect: Callable[[Link], Awaitable[Endpoint]],
        callbacks: SubscriberCallbacks,
    ) -> None:
        """`connect` opens a link. `is_sharded`: with sharded Pub/Sub."""
        self._loop = asyncio.get_running_loop()
        self._timeout = config.call_timeout
        self._callbacks = callbacks
        self._connect = connect
        self._commands = ("SSUBSCRIBE", "SUNSUBSCRIBE") if is_sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        self._max_names = 1 if is_sharded else MAX_NAMES
        self._states: dict[bytes, SubscriptionState] = {}
        self._sent = _SentCommands()
        self._state_changed = asyncio.Event()
        self._link: Link | None = None
        """The newest link on which names are subscribed."""
        self._is_resubscribing = False
        self._resumed: dict[bytes, None] = {}
        """Names whose interruption has ended and is not reported yet."""
        self.connection = ReconnectingLink(
            "messages",
            config,
            connect=self._connect_and_subscribe,
            on_lost=callbacks.on_lost,
            callbacks=LinkCallbacks(
                on_push=self._on_push, on_push_error=self._on_push_error, on_pong=callbacks.on_pong
            ),
        )

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, name: bytes) -> bool:
        return name in self._states

    @property
    def names(self) -> Sequence[bytes]:
        """All names."""
        return list(self._states)

    @property
    def waiting(self) -> int:
        """Calls of `subscribe` that wait for a confirmation."""
        return sum(len(state.waiting) for state in self._states.values())

    async def subscribe(self, name: bytes) -> None:
        """Returns when the server has confirmed. Raises TimeoutError; after any error the caller calls `release`."""
        deadline = self._loop.time() + self._timeout
        if self.connection.is_unavailable:
            raise TimeoutError(self.connection.reason)
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = SubscriptionState()
            self._send_subscribe(name)
        if not state.is_confirmed:
            confirmed = self._loop.create_future()
            state.waiting.append(confirmed)
            state.callers += 1
            try:
                await ensure_task()
                async with asyncio.timeout_at(deadline):
                    await confirmed
            finally:
                state.callers -= 1
                if confirmed in state.waiting:
                    state.waiting.remove(confirmed)
        state.is_held = True

    def release(self, name: bytes) -> None:
        """Unsubscribes, unless a `subscribe` has returned or still waits."""
        state = self._states.get(name)
        if state is not None and not state.is_held and not state.callers:
            self.unsubscribe(name)

    def unsubscribe(self, name: bytes) -> None:
        """Stops delivering messages of the name. Harmless if it is not subscribed."""
        state = self._states.pop(name, None)
        if state is None:
            return
        state.resolve()
        self._send_unsubscribe(name)
        self._state_changed.set()

    def give_up(self, names: Collection[bytes]) -> Mapping[bytes, SubscriptionState]:
        """Unsubscribes names that another server owns now, and returns them for `adopt` of that server's subscriber."""
        given_up = {name: state for name in names if (state := self._states.pop(name, None)) is not None}
        for name in given_up:
            self._send_unsubscribe(name)
        self._state_changed.set()
        return given_up

    def adopt(self, names: Mapping[bytes, SubscriptionState]) -> None:
        """Subscribes names that another server had; the time between counts as an interruption."""
        for name, state in names.items():
            state.is_confirmed = False
            self._states[name] = state
            self._send_subscribe(name)

    def resubscribe(self, name: bytes) -> None:
        """Subscribes a name again that the server has revoked, if callers still want it."""
        state = self._states.get(name)
        if state is not None and not state.is_confirmed and not self._sent.is_subscribing(name):
            self._send_subscribe(name)

    def close(self, error: Exception) -> None:
        """Fails all calls that wait for a confirmation."""
        for state in self._states.values():
            state.resolve(error)
        self._states.clear()

    # --- the server's side --------------------------------------------------------------------------------------------

    def _send_subscribe(self, *names: bytes) -> None:
        if self._link is not None:
            self._sent.add_subscribe(names)
            self._link.send_unanswered(self._commands[0], *names)

    def _send_unsubscribe(self, name: bytes) -> None:
        if self._link is not None:
            self._sent.add_unsubscribe(name)
            self._link.send_unanswered(self._commands[1], name)

    async def _connect_and_subscribe(self, link: Link) -> Endpoint:
        """Opens a link, and returns when all names are subscribed on it."""
        endpoint = await self._connect(link)
        self._link = link
        self._sent.clear()
        for state in self._states.values():
            state.is_confirmed = False
        names = self.names
        for start in range(0, len(names), self._max_names):
            self._send_subscribe(*names[start : start + self._max_names])
        self._is_resubscribing = True
        lost = asyncio.ensure_future(link.lost.wait())
        try:
            async with asyncio.timeout(self._timeout):
                while not all(state.is_confirmed for state in self._states.values()):
                    if lost.done():
                        raise LinkLost(link.close_reason or "the connection was lost while subscribing")
                    self._state_changed.clear()
                    changed = asyncio.ensure_future(self._state_changed.wait())
                    try:
                        await asyncio.wait((lost, changed), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
        finally:
            lost.cancel()
            self._is_resubscribing = False
        self._report_resumed()
        return endpoint

    def _on_push(self, push: list[Any]) -> None:
        kind, name = push[0], push[1]
        if kind in (b"message", b"smessage"):
            if name in self._states:
                self._callbacks.on_message(name, push[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            if self._sent.pop() == (True, name) and not self._sent.is_subscribing(name):
                self._confirm(name)
        elif self._sent.is_next_unsubscribe(name):
            self._sent.pop()
        else:
            self._revoke(name)

    def _on_push_error(self, error: str) -> bool:
        if not error.startswith("MOVED ") or not self._sent:
            return False
        is_subscribe, name = self._sent.pop()
        if is_subscribe:
            self._revoke(name, error)
        return True

    def _confirm(self, name: bytes) -> None:
        state = self._states.get(name)
        if state is None:
            return  # its UNSUBSCRIBE is on the way
        state.is_confirmed = True
        if state.was_confirmed:
            if not self._resumed and not self._is_resubscribing:
                self._loop.call_soon(self._report_resumed)
            self._resumed[name] = None
        state.was_confirmed = True
        state.resolve()
        self._state_changed.set()

    def _report_resumed(self) -> None:
        if not self._is_resubscribing and self._resumed:
            names, self._resumed = [name for name in self._resumed if name in self._states], {}
            self._callbacks.on_interrupted(names)

    def _revoke(self, name: bytes, redirection: str | None = None) -> None:
        state = self._states.get(name)
        if state is not None:
            state.is_confirmed = False
            self._callbacks.on_revoked(name, redirection)
