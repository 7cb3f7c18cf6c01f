"""A link to a server that is replaced whenever it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from service.adapters.redis.connections.errors import Endpoint, NoServerError, explain_failure, is_permanent
from service.adapters.redis.connections.link import Link, LinkCallbacks, LinkLost, ReplyError
from service.adapters.store.config import StoreConfig
from service.adapters.store.retry import retry
from service.core.backoff import Backoff
from service.telemetry.outage import OutageLog

MIN_RETRY_DELAY = 0.05
MAX_RETRY_DELAY = 1.0
"""Seconds before the next try, at most. With more, a failover of two seconds would be noticed much later."""

_log = structlog.get_logger("redis")


class Outage(NamedTuple):
    """Why there is no link."""

    since: float
    """Loop time at which the link was lost."""
    reason: str
    is_permanent: bool
    """Whether the last try failed for a reason that another try will not change."""


class ReconnectingLink:
    """Keeps one link open."""

    def __init__(
        self,
        name: str,
        config: StoreConfig,
        *,
        connect: Callable[[Link], Awaitable[Endpoint]],
        on_lost: Callable[[], None],
        callbacks: LinkCallbacks | None = None,
    ) -> None:
        """`connect` opens a link and prepares it for use. `on_lost` is called when a link that was in use has ended.

        `callbacks` are those of every link, without `on_lost`.
        """
        self._name = name
        self._config = config
        self._connect = connect
        self._on_lost = on_lost
        callbacks = callbacks or LinkCallbacks()
        self._callbacks = LinkCallbacks(
            self._on_link_lost, callbacks.on_push, callbacks.on_push_error, callbacks.on_pong
        )
        self._loop = asyncio.get_running_loop()
        # BrokerHealth logs the reminders.
        self._outage_log = OutageLog(_log, "redis_disconnected", "redis_connected", self._loop.time, reminds=False)
        self._state_changed = asyncio.Event()
        self._is_retired = False
        self.link: Link | None = None
        """The open link; None from the moment at which it is lost."""
        self.endpoint: Endpoint | None = None
        """The server of the newest link."""
        self.outage: Outage | None = Outage(self._loop.time(), "not connected yet", False)
        """None while the link is open."""

    @property
    def reason(self) -> str:
        """Why there is no link; empty while it is open."""
        return "" if self.outage is None else self.outage.reason

    @property
    def is_unavailable(self) -> bool:
        """Whether the link has been lost for longer than a call may take, so that waiting for it is useless."""
        return self.outage is not None and self._loop.time() - self.outage.since > self._config.call_timeout

    async def run(self) -> None:
        """Opens links, one after another, until it is cancelled."""
        while True:
            link, endpoint = await retry(
                self._open,
                Backoff(MIN_RETRY_DELAY, MAX_RETRY_DELAY),
                (NoServerError, LinkLost, ReplyError, TimeoutError),
                self._record_failure,
            )
            self._use(link, endpoint)
            try:
                await link.lost.wait()
            finally:
                link.abort()
                self._on_link_lost(link)
            self._on_lost()

    async def wait_open(self, deadline: float) -> Link:
        """Returns the link once it is open.

        Raises TimeoutError at the deadline (loop time), or at once if it `is_unavailable`. Raises LinkLost after `retire`.
        """
        while self.link is None:
            if self._is_retired:
                raise LinkLost("the server is no longer one of ours")
            if self.is_unavailable:
                raise TimeoutError(self.reason)
            async with asyncio.timeout_at(deadline):
                await self._state_changed.wait()
        return self.link

    def retire(self) -> None:
        """Fails all calls that wait for the link."""
        self._is_retired = True
        self._state_changed.set()

    def reconnect(self) -> None:
        """Closes the link, so that the next one connects to the current server."""
        if self.link is not None:
            self.link.abort()

    async def _open(self) -> tuple[Link, Endpoint]:
        link = Link(
            ping_interval=self._config.ping_interval,
            silence_timeout=self._config.silence_timeout,
            call_timeout=self._config.call_timeout,
            callbacks=self._callbacks,
        )
        try:
            endpoint = await self._connect(link)
            if not link.is_open:
                raise LinkLost(link.close_reason or "the connection was lost")
        except BaseException:
            link.abort()
            raise
        return link, endpoint

    def _use(self, link: Link, endpoint: Endpoint) -> None:
        seconds = 0.0 if self.outage is None else self._loop.time() - self.outage.since
        is_elsewhere = endpoint != self.endpoint
        self.link, self.endpoint, self.outage = link, endpoint, None
        self._state_changed.set()
        fields = {"line": self._name, "host": endpoint[0], "port": endpoint[1]}
        if not self._outage_log.recovered(**fields) and is_elsewhere:
            _log.info("redis_connected", seconds=round(seconds, 1), **fields)

    def _on_link_lost(self, link: Link) -> None:
        if self.link is link:
            self.link, self.outage = None, Outage(self._loop.time(), "", False)
            self._state_changed.clear()
            self._record_failure(LinkLost(link.close_reason or "the connection was lost"))

    def _record_failure(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, NoServerError) else explain_failure(error)
        self._outage_log.failed(line=self._name, reason=reason)
        since = self._loop.time() if self.outage is None else self.outage.since
        self.outage = Outage(since, reason, is_permanent(error))
