"""One connection to one NATS server."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from service.adapters.nats.config import NatsConfig
from service.adapters.nats.connection import protocol
from service.adapters.nats.connection.protocol import Message
from service.adapters.store.errors import MisconfiguredError, unavailable
from service.adapters.store.silence_detector import SilenceDetector

READ_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class ConnectionCallbacks:
    """What a connection reports; all are called on the event loop and must not raise."""

    on_message: Callable[[Message], None]
    on_error: Callable[[str], None]
    """An error that the server has sent."""
    on_pong: Callable[[float], None]
    """Seconds from a ping to its answer, which arrives after everything that the server sent before."""


class Connection:
    """Sends operations and reads those of the server. Aborts itself when the server does not answer pings."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        config: NatsConfig,
        callbacks: ConnectionCallbacks,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._writer = writer
        self._config = config
        self._callbacks = callbacks
        self._parser = protocol.Parser()
        self._silence = SilenceDetector(config.ping_interval, config.silence_timeout, self._loop.time())
        self._out: list[bytes] = []
        self._pongs: deque[asyncio.Future[None] | float] = deque()
        """One entry for each PONG that is due: the future of a `flush`, or the time of our own ping."""
        self._timer: asyncio.TimerHandle | None = None
        self._close_reason = ""
        self.info: Mapping[str, Any] = {}
        """The server's INFO."""

    @classmethod
    async def open(
        cls,
        server: str,
        config: NatsConfig,
        tls: ssl.SSLContext | None,
        subscriptions: Iterable[tuple[str, int]],
        callbacks: ConnectionCallbacks,
    ) -> Connection:
        """Connects to a server, and makes the subscriptions, given as (subject, id). Messages may be delivered before
        it returns.

        Raises OSError, EOFError, asyncio.LimitOverrunError, ProtocolError or ServiceError.
        """
        url = urlsplit(server)
        reader, writer = await asyncio.open_connection(url.hostname, url.port or 4222, limit=protocol.MAX_LINE)
        connection = cls(reader, writer, config, callbacks)
        try:
            # Before TLS only INFO is read: what follows it is encrypted.
            for operation in connection._parser.feed(await reader.readuntil(protocol.CRLF)):
                connection._on_operation(operation)
            if tls is not None:
                await writer.start_tls(tls, server_hostname=url.hostname)
            elif connection.info.get("tls_required"):
                raise MisconfiguredError("this NATS server wants TLS: write tls:// in broker.url")
            subscribes = (protocol.encode_subscribe(subject, sid) for subject, sid in subscriptions)
            connect = protocol.encode_connect(_options(config, is_tls=tls is not None))
            writer.write(b"".join((connect, *subscribes, protocol.PING)))
            await connection._read_until_pong()
        except BaseException:
            connection.abort()
            raise
        connection._silence.last_data = connection._loop.time()
        connection._timer = connection._loop.call_later(config.ping_interval, connection._tick)
        return connection

    async def _read_until_pong(self) -> None:
        """Returns when the server has processed the subscriptions."""
        while data := await self._reader.read(READ_BYTES):
            is_ready = False
            for operation in self._parser.feed(data):
                if isinstance(operation, protocol.Error) and not is_permission_error(operation.text):
                    raise MisconfiguredError(f"NATS says: {operation.text}")
                if isinstance(operation, protocol.Pong):
                    is_ready = True
                else:
                    self._on_operation(operation)
            if is_ready:
                return
        raise unavailable("NATS closed the connection")

    async def read(self) -> str:
        """Reads until the connection ends. Returns why it has ended."""
        try:
            while data := await self._reader.read(READ_BYTES):
                self._silence.last_data = self._loop.time()
                for operation in self._parser.feed(data):
                    self._on_operation(operation)
        except (OSError, protocol.ProtocolError) as error:
            return self._close_reason or str(error) or type(error).__name__
        return self._close_reason or "NATS closed the connection"

    def send(self, *operations: bytes) -> None:
        """Sends operations, in one write with all others of this iteration of the event loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.extend(operations)

    def flush(self) -> asyncio.Future[None]:
        """Sends a PING. The future is done when the server has processed everything before it."""
        pong: asyncio.Future[None] = self._loop.create_future()
        self.send(protocol.PING)
        self._pongs.append(pong)
        return pong

    def abort(self, error: Exception | None = None) -> None:
        """Ends the connection at once. Calls of `flush` fail with the error."""
        if self._timer is not None:
            self._timer.cancel()
        self._out.clear()
        self._writer.transport.abort()
        pongs, self._pongs = self._pongs, deque()
        for pong in pongs:
            if not isinstance(pong, float) and not pong.done():
                pong.set_exception(error or unavailable("the connection to NATS was lost"))

    async def wait_closed(self) -> None:
        """Returns when the socket is closed, after `abort`."""
        with suppress(OSError):
            await self._writer.wait_closed()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out:
            self._writer.write(b"".join(out))

    def _on_operation(self, operation: protocol.ServerOperation) -> None:
        match operation:
            case Message():
                self._callbacks.on_message(operation)
            case protocol.Ping():
                self.send(protocol.PONG)
            case protocol.Pong():
                pong = self._pongs.popleft() if self._pongs else None
                if isinstance(pong, float):
                    self._callbacks.on_pong(self._loop.time() - pong)
                elif pong is not None and not pong.done():
                    pong.set_result(None)
            case protocol.Info():
                self.info = operation.fields
            case protocol.Error():
                self._callbacks.on_error(operation.text)

    def _tick(self) -> None:
        """Sends a PING, or ends the connection to a silent server."""
        now = self._loop.time()
        self._silence.has_stalled(now)
        if self._silence.is_silent(now):
            self._close_reason = f"NATS has been silent for {self._config.silence_timeout:g} s"
            self._writer.transport.abort()  # ends `read`
            return
        self._pongs.append(now)
        self.send(protocol.PING)
        self._timer = self._loop.call_later(self._config.ping_interval, self._tick)


def is_permission_error(text: str) -> bool:
    """Whether it is an error about permissions, after which the server keeps the connection open."""
    return text.startswith("Permissions Violation")


def _options(config: NatsConfig, *, is_tls: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "verbose": False,
        "pedantic": False,
        "tls_required": is_tls,
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
    return options
