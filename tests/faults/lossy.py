"""A front that loses replies: what a publisher sees when the connection breaks just after the service has accepted."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

HEADER = b"HTTP/1.1 200"
"""What the reply to an accepted publish begins with."""


class LossyFront:
    """Forwards to a port; now and then it cuts the connection in place of a reply. WebSockets lose an `ack` that way."""

    def __init__(self, target: int, random: Random, share: float) -> None:
        self.lost = 0
        self._target = target
        self._random = random
        self._share = share
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens; gives the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._tasks.discard(task)
        up = asyncio.create_task(self._up(reader, far_writer))
        down = asyncio.create_task(self._down(far_reader, writer, far_writer))
        for pump in (up, down):
            self._tasks.add(pump)
            pump.add_done_callback(self._tasks.discard)

    async def _up(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                sink.write(data)
        sink.close()

    async def _down(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    reply = data.startswith(HEADER) or b'"type":"ack"' in data
                    if reply and self._random.random() < self._share:
                        self.lost += 1
                        break
                    sink.write(data)
        finally:
            sink.transport.abort()
            up.transport.abort()
