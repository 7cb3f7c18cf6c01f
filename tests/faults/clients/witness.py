"""One client outside the crowd, over any transport: it keeps every message, and does not come back."""

from __future__ import annotations

import asyncio
from time import monotonic

from tests.faults.clients.transports import RESTARTED, TRANSPORTS, ClientTransport
from tests.faults.node import Node
from tests.faults.stage import seconds_until
from tests.faults.tokens import token
from tests.support.http_wire import ProblemError
from tests.support.wire import Refused, Wire


class Witness:
    """See the module."""

    def __init__(self, transport: str = "websocket") -> None:
        self.name = transport
        self.frames: list[bytes] = []
        self.closed: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()
        """The close code, or the error code with which a poll was refused."""
        self._transport: ClientTransport | None = None

    async def come(
        self,
        node: Node,
        tenant: str,
        user: str,
        *channels: str,
        bearer: str | None = None,
        receive_buffer: int | None = None,
        port: int | None = None,
    ) -> ClientTransport:
        """Connects, to another port than the node's if told so, and subscribes."""
        transport = TRANSPORTS[self.name](bearer or token(user, tenant), self, receive_buffer=receive_buffer)
        self._transport = transport
        await transport.connect(port or node.port, dict.fromkeys(channels))
        await self.until(b'"subscribed"', len(channels))
        return transport

    @property
    def websocket(self) -> Wire:
        """Its connection, which is a WebSocket."""
        assert self._transport is not None
        wire = self._transport.wire
        assert isinstance(wire, Wire)
        return wire

    async def until(self, what: bytes, times: int = 1, within: float = 5.0) -> None:
        """Waits until a text has come so often."""

        async def came() -> bool:
            return sum(frame.count(what) for frame in self.frames) >= times

        assert await seconds_until(came, monotonic(), within) is not None, f"{what!r} did not come: {self.frames[-3:]}"

    async def code(self, within: float) -> int | str:
        """Returns `closed`; 0 if it does not come in time."""
        try:
            async with asyncio.timeout(within):
                return await asyncio.shield(self.closed)
        except TimeoutError:
            return 0

    def leave(self) -> None:
        """Goes."""
        if self._transport is not None:
            self._transport.abort()

    # --- called by the transport --------------------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        """Keeps it."""
        self.frames.append(frame)

    def gone(self, code: int) -> None:
        """Keeps the code."""
        if code != RESTARTED and not self.closed.done():
            self.closed.set_result(code)

    def refused(self, refusal: Refused) -> None:
        """Keeps the code."""
        if not self.closed.done():
            self.closed.set_result(refusal.code if isinstance(refusal, ProblemError) else str(refusal))

    def continued(self, *, resumed: bool) -> None:
        """Nothing to do."""
