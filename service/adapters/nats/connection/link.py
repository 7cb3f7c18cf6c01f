"""One connection to NATS that is always there or being made.

Why not nats-py: docs/adr/0013-nats.md. In short: a node carries thousands of channels, and nats-py keeps a task and a queue
for each, drops what overflows that queue, and keeps publishes back while it reconnects.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import structlog

from service.adapters.nats.config import NatsConfig
from service.adapters.nats.connection import protocol
from service.adapters.nats.connection.protocol import Message
from service.core.backoff import Backoff
from service.core.descriptors import EXHAUSTED, is_exhaustion
from service.errors import ErrorCode, ServiceError
from service.telemetry.outage import LimitedLog, OutageLog

READ_BYTES = 262_144
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
"""Between two tries to connect, see `Backoff`."""

Handler = Callable[[Message], None]
"""Takes one message on the event loop; must not raise."""

_log = structlog.get_logger("nats")


def unavailable(reason: str) -> ServiceError:
    """The port's one refusal."""
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, reason)


class Unfit(ServiceError):  # noqa: N818  # reads as what the servers are  # noqa: N818  # reads as what it is
    """The same, and waiting does not help: somebody has to change something."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.BROKER_UNAVAILABLE, reason)


class _Call:
    """One question that awaits its answers: the last one makes `done` true."""

    __slots__ = ("answers", "future", "last")

    def __init__(self, future: asyncio.Future[list[Message]], last: Callable[[Message], bool]) -> None:
        self.future = future
        self.last = last
        self.answers: list[Message] = []

    def take(self, answer: Message) -> bool:
        """Whether that was the last one."""
        self.answers.append(answer)
        if not self.last(answer):
            return False
        if not self.future.done():
            self.future.set_result(self.answers)
        return True


def _first(answer: Message) -> bool:
    return True


class Link:
    """Subscriptions outlive a connection; calls do not: they fail at once while there is none, and with it when it ends.

    `restored` is awaited after each connection but the first, when every subscription is in force again; until it returns
    `usable` stays False and only calls made by it go out. It is repeated while it raises ServiceError. `on_pong` gets the
    seconds that each ping took, behind all that the server had sent before its answer.
    """

    def __init__(
        self, config: NatsConfig, restored: Callable[[], Awaitable[None]], on_pong: Callable[[float], None]
    ) -> None:
        self._loop: asyncio.AbstractEventLoop  # from start on, before which nothing is asked of it
        self._config = config
        self._restored = restored
        self._on_pong = on_pong
        self._task: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._out: list[bytes] = []
        self._subscriptions: dict[int, tuple[str, Handler]] = {}
        self._told: dict[str, str] = {}
        """Why each server could not be connected to, as logged in this outage."""
        # The broker's health logs the reminders.
        self._outage = OutageLog(_log, "connection lost", "connected again", reminds=False)
        self._complained = LimitedLog(_log, "NATS complains")
        self._cannot_go_on = LimitedLog(_log, "cannot go on after connecting again", level="error")
        self._is_silent = False
        """Whether the connection is cut because the server says nothing."""
        self._refused: set[str] = set()
        self._next = 1
        self._inbox = f"_INBOX.{config.prefix}.{secrets.token_hex(8)}"
        self._calls: dict[str, _Call] = {}
        self._pongs: deque[asyncio.Future[None] | float] = deque()
        """Who waits for each pong that is owed; for those of `_beat` when the ping was sent."""
        self._heard = 0.0
        self._beating: asyncio.TimerHandle | None = None
        self.info: Mapping[str, Any] = {}
        """What the server says of itself."""
        self.usable = False
        """Whether calls go out."""

    async def start(self) -> None:
        """Connects to the first server that lets us in; may be repeated until it has.

        Raises ServiceError if none does.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._tls = self._config.ssl_context()
        except OSError as error:
            raise Unfit(f"the TLS files cannot be used: {error.strerror or error}") from error
        self._subscriptions[0] = (f"{self._inbox}.*", self._answered)
        reader, parser = await self._connect_any()
        self.usable = True
        self._task = self._loop.create_task(self._run(reader, parser), name="nats link")
        self._task.add_done_callback(self._ended)
        self._beating = self._loop.call_later(self._config.ping, self._beat)

    async def close(self) -> None:
        """Ends the connection; calls under way fail."""
        if self._beating is not None:
            self._beating.cancel()
        tasks = [task for task in (self._task, self._restoring) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if (writer := self._writer) is not None:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        self._lost("the broker is closed")

    # --- what is asked of it --------------------------------------------------------------------------------------------

    def send(self, *lines: bytes) -> None:
        """Puts the lines on their way together with all else that is sent in this turn of the loop.

        Raises ServiceError when there is no connection.
        """
        if self._writer is None:
            raise unavailable("there is no connection to NATS")
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.extend(lines)

    async def ask(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        ahead: tuple[bytes, ...] = (),
        last: Callable[[Message], bool] = _first,
    ) -> list[Message]:
        """Says something, after the lines `ahead`, and returns the answers up to the `last` one.

        Raises ServiceError when there is no connection, or it ends before.
        """
        self._next += 1
        token = str(self._next)
        call = _Call(self._loop.create_future(), last)
        self.send(*ahead, protocol.publish(subject, payload, f"{self._inbox}.{token}", headers))
        self._calls[token] = call
        try:
            return await call.future
        finally:
            self._calls.pop(token, None)

    def tell(self, subject: str, payload: bytes) -> None:
        """Asks something whose answer is of no interest. Raises as `send`."""
        self.send(protocol.publish(subject, payload, f"{self._inbox}.0"))

    def settle(self) -> asyncio.Future[None]:
        """Done when the server has dealt with everything sent before.

        Raises ServiceError when there is no connection; the future does so when it ends before.
        """
        pong: asyncio.Future[None] = self._loop.create_future()
        self.send(protocol.PING)
        self._pongs.append(pong)
        return pong

    def subscribe(self, subject: str, handler: Handler) -> int:
        """Asks for a subject's messages; once `settle` has returned the server passes them on, unless `check_permitted`
        raises. Returns what `unsubscribe` wants. Raises as `send`."""
        self._next += 1
        self._refused.discard(subject)
        self.send(protocol.subscribe(subject, self._next))
        self._subscriptions[self._next] = (subject, handler)
        return self._next

    def check_permitted(self, subject: str) -> None:
        """Raises ServiceError if the server has refused the last subscription to the subject."""
        if subject in self._refused:
            raise unavailable("NATS does not permit this node to subscribe; the log names the subject")

    def unsubscribe(self, sid: int) -> None:
        """Stops that at once."""
        if self._subscriptions.pop(sid, None) is not None:
            with suppress(ServiceError):  # without a connection there is nothing to end
                self.send(protocol.unsubscribe(sid))

    # --- connecting -----------------------------------------------------------------------------------------------------

    async def _connect_any(self) -> tuple[asyncio.StreamReader, protocol.Parser]:
        found: ServiceError = unavailable("there is no NATS server")
        for server in random.sample(self._config.servers, len(self._config.servers)):
            try:
                async with asyncio.timeout(self._config.silence):
                    return await self._connect(server)
            except (OSError, protocol.Broken, EOFError, asyncio.LimitOverrunError, ServiceError) as error:
                # Their words are the system's and the server's own, about addresses and permissions.
                reason = error.message if isinstance(error, ServiceError) else str(error) or type(error).__name__
                if is_exhaustion(error):
                    reason = EXHAUSTED
                place = urlsplit(server)
                if self._told.get(server) != reason:  # each reason once, not with each try
                    self._told[server] = reason
                    _log.warning("cannot connect", host=place.hostname, port=place.port, reason=reason)
                found = error if isinstance(error, ServiceError) else unavailable(f"NATS cannot be reached: {reason}")
        raise found

    async def _connect(self, server: str) -> tuple[asyncio.StreamReader, protocol.Parser]:
        place = urlsplit(server)
        reader, writer = await asyncio.open_connection(place.hostname, place.port or 4222, limit=protocol.MAX_LINE)
        try:
            parser = protocol.Parser()
            # Nothing may be read beyond INFO before TLS: what follows is not in the clear.
            for said in parser.feed(await reader.readuntil(protocol.CRLF)):
                if isinstance(said, protocol.Info):
                    self.info = said.fields
            if self._tls is not None:
                await writer.start_tls(self._tls, server_hostname=place.hostname)
            elif self.info.get("tls_required"):
                raise Unfit("this NATS server wants TLS: write tls:// in broker.url")
            writer.write(self._greeting())
            self._writer = writer
            await self._welcome(reader, parser)
        except BaseException:
            self._writer = None
            writer.transport.abort()
            raise
        self._heard = asyncio.get_running_loop().time()
        return reader, parser

    def _greeting(self) -> bytes:
        config = self._config
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "tls_required": self._tls is not None,
            "name": config.prefix,
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "echo": True,
        }
        if config.user is not None:
            options["user"] = config.user
        if config.password is not None:
            options["pass" if config.user is not None else "auth_token"] = config.password
        subscriptions = (protocol.subscribe(subject, sid) for sid, (subject, _) in self._subscriptions.items())
        return b"".join((protocol.connect(options), *subscriptions, protocol.PING))

    async def _welcome(self, reader: asyncio.StreamReader, parser: protocol.Parser) -> None:
        """Waits until the subscriptions are in force. What comes in before is delivered: it follows what was missed."""
        while data := await reader.read(READ_BYTES):
            welcome = False
            for said in parser.feed(data):
                if isinstance(said, protocol.Complaint) and not _about_permissions(said.text):
                    raise Unfit(f"NATS says: {said.text}")
                if isinstance(said, protocol.Pong):
                    welcome = True
                else:
                    self._hear(said)
            if welcome:
                return
        raise unavailable("NATS closed the connection")

    # --- living ---------------------------------------------------------------------------------------------------------

    async def _run(self, reader: asyncio.StreamReader, parser: protocol.Parser) -> None:
        """Reads, and connects again, for ever."""
        while True:
            reason = await self._read(reader, parser)
            if self._is_silent:
                self._is_silent = False
                reason = f"NATS has been silent for {self._config.silence:g} s"
            if self._writer is not None:
                self._writer.transport.abort()
            self._lost(reason)
            reader, parser = await self._connect_again(reason)
            self._outage.recovered()
            self._restoring = asyncio.create_task(self._restore(), name="nats restore")

    async def _read(self, reader: asyncio.StreamReader, parser: protocol.Parser) -> str:
        """Until the connection ends; returns why."""
        try:
            while data := await reader.read(READ_BYTES):
                self._heard = self._loop.time()
                for said in parser.feed(data):
                    self._hear(said)
        except (OSError, protocol.Broken) as error:
            return str(error) or type(error).__name__
        return "NATS closed the connection"

    async def _connect_again(self, reason: str) -> tuple[asyncio.StreamReader, protocol.Parser]:
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            if self._outage.failed(reason=reason):
                self._told.clear()
            await asyncio.sleep(backoff.next())
            with suppress(ServiceError):  # it has been logged for each server
                return await self._connect_any()

    async def _restore(self) -> None:
        """Calls `restored` until it succeeds; ends with the connection."""
        writer, backoff = self._writer, Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while self._writer is writer and writer is not None:
            try:
                async with asyncio.timeout(self._config.timeout):
                    await self._restored()
            except Exception as error:
                if not isinstance(error, ServiceError | TimeoutError):
                    self._cannot_go_on(exc_info=error)
                await asyncio.sleep(backoff.next())
            else:
                self.usable = self._writer is writer
                return

    def _hear(self, said: protocol.Said) -> None:
        match said:
            case Message():
                if (found := self._subscriptions.get(said.sid)) is not None:
                    found[1](said)
            case protocol.Ping():
                self.send(protocol.PONG)
            case protocol.Pong():
                pong = self._pongs.popleft() if self._pongs else None
                if isinstance(pong, float):
                    self._on_pong(self._loop.time() - pong)
                elif pong is not None and not pong.done():
                    pong.set_result(None)
            case protocol.Info():
                self.info = said.fields
            case protocol.Complaint():
                self._complained(said.text, reason=said.text)
                if _about_permissions(said.text):
                    self._refused.add(said.text.partition('"')[2].partition('"')[0])

    def _answered(self, answer: Message) -> None:
        token = answer.subject.rpartition(".")[2]
        call = self._calls.get(token)
        if call is not None and call.take(answer):
            del self._calls[token]

    def _beat(self) -> None:
        """Asks whether the server is there, and gives the connection up when it has been silent for too long."""
        self._beating = self._loop.call_later(self._config.ping, self._beat)
        if self._writer is None:
            return
        if self._loop.time() - self._heard > self._config.silence:
            self._is_silent = True
            self._writer.transport.abort()  # which ends `_read`
            return
        self._pongs.append(self._loop.time())
        self.send(protocol.PING)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Only `close` ends the task. If anything else does, every call fails from now on, and `Broker.check` with them."""
        if not task.cancelled():
            _log.error("task_died", task=task.get_name(), exc_info=task.exception())
            self._lost("its task died")

    def _flush(self) -> None:
        lines, self._out = self._out, []
        if self._writer is not None:
            self._writer.write(b"".join(lines))

    def _lost(self, reason: str) -> None:
        """Fails what was under way."""
        self.usable = False
        self._writer = None
        self._out.clear()
        calls, self._calls = self._calls, {}
        pongs, self._pongs = self._pongs, deque()
        waiting: list[asyncio.Future[Any]] = [call.future for call in calls.values()]
        for future in (*waiting, *(pong for pong in pongs if not isinstance(pong, float))):
            if not future.done():
                future.set_exception(unavailable(f"the connection to NATS was lost: {reason}"))


def _about_permissions(text: str) -> bool:
    """The one complaint after which a connection lives on."""
    return text.startswith("Permissions Violation")
