"""A connection to NATS that is replaced whenever it is lost.

Why not nats-py (docs/adr/0013-nats.md): a node has thousands of channels. nats-py keeps a task and a queue for each,
drops messages that overflow that queue, and delays publishes while it reconnects.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import structlog

from service.adapters.nats.config import NatsConfig
from service.adapters.nats.connection import protocol
from service.adapters.nats.connection.connection import Connection, ConnectionCallbacks, is_permission_error
from service.adapters.nats.connection.protocol import Message
from service.adapters.store.errors import MisconfiguredError, unavailable
from service.adapters.store.retry import retry
from service.aio.tasks import TaskSupervisor
from service.core.backoff import Backoff
from service.core.descriptors import EXHAUSTED, is_exhaustion
from service.errors import ServiceError
from service.telemetry.outage import LimitedLog, OutageLog

MIN_RETRY_DELAY = 0.05
MAX_RETRY_DELAY = 2.0
"""Seconds before the next try to connect, or to resync after a reconnect."""
_UNANSWERED = "0"
"""The token of requests whose answer nobody reads."""

MessageHandler = Callable[[Message], None]
"""Called with one message on the event loop; must not raise."""

_log = structlog.get_logger("nats")


class _Requests:
    """Requests that wait for their answers, by the last token of the subject to answer to."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[asyncio.Future[list[Message]], list[Message], Callable[[Message], bool]]] = {}
        self._last_token = 0

    def add(self, is_last: Callable[[Message], bool]) -> tuple[str, asyncio.Future[list[Message]]]:
        """Adds a request. Returns its token, and the future of its answers up to the first for which `is_last` is true."""
        self._last_token += 1
        token = str(self._last_token)
        future: asyncio.Future[list[Message]] = asyncio.get_running_loop().create_future()
        self._pending[token] = (future, [], is_last)
        return token, future

    def remove(self, token: str) -> None:
        """Removes a request. Harmless if it is unknown."""
        self._pending.pop(token, None)

    def on_answer(self, answer: Message) -> None:
        """Adds an answer to its request."""
        token = answer.subject.rpartition(".")[2]
        if (request := self._pending.get(token)) is None:
            return
        future, answers, is_last = request
        answers.append(answer)
        if is_last(answer):
            del self._pending[token]
            if not future.done():
                future.set_result(answers)

    def fail(self, error: Exception) -> None:
        """Fails all requests."""
        pending, self._pending = self._pending, {}
        for future, _, _ in pending.values():
            if not future.done():
                future.set_exception(error)


def _is_first(answer: Message) -> bool:
    return True


class Link:
    """Keeps subscriptions across connections. Requests fail when their connection ends, and at once without a
    connection."""

    def __init__(
        self,
        config: NatsConfig,
        tasks: TaskSupervisor,
        *,
        on_reconnected: Callable[[], Awaitable[None]],
        on_pong: Callable[[float], None],
    ) -> None:
        """`tasks` are the link's own. `on_reconnected` is awaited after each reconnect, once all subscriptions are active again.

        Until it returns, `is_ready` is False. It is repeated while it raises ServiceError.
        """
        self._config = config
        self._tasks = tasks
        self._on_reconnected = on_reconnected
        self._callbacks = ConnectionCallbacks(self._on_message, self._on_error, on_pong)
        self._tls: ssl.SSLContext | None = None
        self._connection: Connection | None = None
        self._newest: Connection | None = None
        """The newest connection, even after it has ended."""
        self._requests = _Requests()
        self._inbox = f"_INBOX.{config.prefix}.{secrets.token_hex(8)}"
        self._subscriptions: dict[int, tuple[str, MessageHandler]] = {0: (f"{self._inbox}.*", self._requests.on_answer)}
        self._last_sid = 0
        self._denied: set[str] = set()
        """Subjects to which the server does not let this node subscribe."""
        self._logs = _LinkLogs()
        self.is_ready = False
        """Whether calls may be made."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The INFO of the newest server."""
        return {} if self._newest is None else self._newest.info

    async def start(self) -> None:
        """Connects to the first server that accepts the node; may be repeated until one does. Raises ServiceError."""
        try:
            self._tls = self._config.ssl_context()
        except OSError as error:
            raise MisconfiguredError(f"the TLS files cannot be used: {error.strerror or error}") from error
        connection = await self._connect()
        self.is_ready = True
        self._tasks.spawn("nats connection", self._run(connection))

    async def close(self) -> None:
        """Ends the connection for good. Requests fail."""
        connection = self._connection
        self._disconnect("the broker is closed")
        await self._tasks.close()
        if connection is not None:
            await connection.wait_closed()

    # --- called by the owner --------------------------------------------------------------------------------------------

    def send(self, *operations: bytes) -> None:
        """Sends operations, in one write with all others of this iteration of the event loop.

        Raises ServiceError without a connection.
        """
        self._require_connection().send(*operations)

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        ahead: tuple[bytes, ...] = (),
        is_last: Callable[[Message], bool] = _is_first,
    ) -> list[Message]:
        """Publishes a request after the operations `ahead`. Returns its answers, up to the first for which `is_last` is true.

        Raises ServiceError without a connection, or when it ends before the answer.
        """
        connection = self._require_connection()
        token, answers = self._requests.add(is_last)
        try:
            connection.send(*ahead, protocol.encode_publish(subject, payload, f"{self._inbox}.{token}", headers))
            return await answers
        finally:
            self._requests.remove(token)

    def send_unanswered(self, subject: str, payload: bytes) -> None:
        """Publishes a request whose answer nobody reads. Raises ServiceError without a connection."""
        self.send(protocol.encode_publish(subject, payload, f"{self._inbox}.{_UNANSWERED}"))

    def flush(self) -> asyncio.Future[None]:
        """Returns a future that is done when the server has processed everything sent so far.

        Raises ServiceError without a connection; the future does so when it ends before.
        """
        return self._require_connection().flush()

    def subscribe(self, subject: str, handler: MessageHandler) -> int:
        """Subscribes to a subject. Returns an id for `unsubscribe`. Raises ServiceError without a connection.

        The subscription is active once `flush` has returned, unless `check_permitted` raises.
        """
        self._last_sid += 1
        self._denied.discard(subject)
        self.send(protocol.encode_subscribe(subject, self._last_sid))
        self._subscriptions[self._last_sid] = (subject, handler)
        return self._last_sid

    def check_permitted(self, subject: str) -> None:
        """Raises ServiceError if the server has denied the last subscription to the subject."""
        if subject in self._denied:
            raise unavailable("NATS does not permit this node to subscribe; the log names the subject")

    def unsubscribe(self, sid: int) -> None:
        """Delivers nothing to the subscription's handler from now on."""
        if self._subscriptions.pop(sid, None) is not None:
            with suppress(ServiceError):  # without a connection there is nothing to unsubscribe
                self.send(protocol.encode_unsubscribe(sid))

    def _require_connection(self) -> Connection:
        if self._connection is None:
            raise unavailable("there is no connection to NATS")
        return self._connection

    # --- connecting -----------------------------------------------------------------------------------------------------

    async def _run(self, connection: Connection) -> None:
        """Reads, and connects again when the connection ends."""
        try:
            while True:
                reason = await connection.read()
                self._disconnect(reason)
                connection = await self._reconnect(reason)
                self._logs.outage.recovered()
                self._tasks.spawn("nats resync", self._resync(connection))
        finally:
            self._disconnect("its task has ended")

    async def _connect(self) -> Connection:
        """Connects to any server. Raises ServiceError if none accepts the node."""
        failure: ServiceError = unavailable("there is no NATS server")
        for server in random.sample(self._config.servers, len(self._config.servers)):
            subscriptions = [(subject, sid) for sid, (subject, _) in self._subscriptions.items()]
            try:
                async with asyncio.timeout(self._config.silence_timeout):
                    connection = await Connection.open(server, self._config, self._tls, subscriptions, self._callbacks)
            except (OSError, protocol.ProtocolError, EOFError, asyncio.LimitOverrunError, ServiceError) as error:
                reason = _reason(error)
                self._logs.connect_failed(server, reason)
                cause = unavailable(f"NATS cannot be reached: {reason}")
                failure = error if isinstance(error, ServiceError) else cause
            else:
                self._connection = self._newest = connection
                ended = (sid for _, sid in subscriptions if sid not in self._subscriptions)
                connection.send(*map(protocol.encode_unsubscribe, ended))
                return connection
        raise failure

    async def _reconnect(self, reason: str) -> Connection:
        backoff = Backoff(MIN_RETRY_DELAY, MAX_RETRY_DELAY)

        def record(error: ServiceError | None = None) -> None:
            if self._logs.outage.failed(reason=reason):
                self._logs.forget_connect_failures()

        record()
        await asyncio.sleep(backoff.next())  # so that nodes that lost the same server do not all return at once
        return await retry(self._connect, backoff, ServiceError, record)

    async def _resync(self, connection: Connection) -> None:
        """Calls `on_reconnected` until it succeeds, or the connection has ended."""

        async def resync() -> None:
            if self._connection is connection:
                async with asyncio.timeout(self._config.call_timeout):
                    await self._on_reconnected()
                self.is_ready = self._connection is connection

        await retry(resync, Backoff(MIN_RETRY_DELAY, MAX_RETRY_DELAY), Exception, self._logs.resync_failed)

    def _disconnect(self, reason: str) -> None:
        """Drops the connection, and fails all requests."""
        self.is_ready = False
        connection, self._connection = self._connection, None
        error = unavailable(f"the connection to NATS was lost: {reason}")
        if connection is not None:
            connection.abort(error)
        self._requests.fail(error)

    # --- called by the connection ---------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        if (found := self._subscriptions.get(message.sid)) is not None:
            found[1](message)

    def _on_error(self, text: str) -> None:
        self._logs.server_error(text)
        if is_permission_error(text):
            self._denied.add(text.partition('"')[2].partition('"')[0])


class _LinkLogs:
    """What a link logs, each reason once in an outage."""

    def __init__(self) -> None:
        # BrokerHealth logs the reminders.
        self.outage = OutageLog(_log, "nats_disconnected", "nats_connected", reminds=False)
        self._errors = LimitedLog(_log, "nats_error_received")
        self._resync_failures = LimitedLog(_log, "nats_resync_failed", level="error")
        self._connect_failures: dict[str, str] = {}
        """The reason that was logged last for each server."""

    def connect_failed(self, server: str, reason: str) -> None:
        """Logs a reason unless it is the server's last one."""
        if self._connect_failures.get(server) != reason:
            self._connect_failures[server] = reason
            url = urlsplit(server)
            _log.warning("nats_connect_failed", host=url.hostname, port=url.port, reason=reason)

    def forget_connect_failures(self) -> None:
        """Logs each reason again from now on."""
        self._connect_failures.clear()

    def server_error(self, text: str) -> None:
        """Logs an error that the server has sent."""
        self._errors(text, reason=text)

    def resync_failed(self, error: Exception) -> None:
        """Logs an error that is no outage of the store."""
        if not isinstance(error, ServiceError | TimeoutError):
            self._resync_failures(exc_info=error)


def _reason(error: BaseException) -> str:
    """Says why a connection failed, in the system's or the server's words, which name addresses and permissions
    only."""
    if is_exhaustion(error):
        return EXHAUSTED
    if isinstance(error, ServiceError):
        return error.message
    return str(error) or type(error).__name__
