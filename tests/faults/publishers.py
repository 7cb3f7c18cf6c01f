"""Publishers that retry what was not acknowledged, with the same id, until it is; and the log of what was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from time import monotonic

import aiohttp
import msgspec

from tests.faults.books import Ack, Key, Top, Trouble, line
from tests.faults.tokens import API_KEYS, token
from tests.support.wire import Refused, Wire, connect, reader

PATIENCE = 8.0
"""Seconds that a publisher waits for an answer; above broker.timeout, so that the service's own answer comes first."""
PAUSE, PAUSE_MOST = 0.05, 0.5
"""Seconds between two tries."""

LATE = 0.5
"""Seconds of delay that a publisher makes up for; what a fault held up for longer is not sent in a burst."""


class Reply(msgspec.Struct):
    """An answer of the HTTP API or an `ack` or `error` of the WebSocket."""

    type: str = ""
    id: str | None = None
    epoch: str = ""
    offset: int = 0
    duplicate: bool = False
    code: str = ""
    retryable: bool = False


_reply = msgspec.json.Decoder(Reply)
_read = reader(Reply)


class Log:
    """What all publishers together know."""

    def __init__(self) -> None:
        self.acks: list[Ack] = []
        self.newest: dict[Key, Top] = {}
        """The highest acknowledged position of each channel whose acknowledgements tell the epoch."""
        self.troubles: list[Trouble] = []
        """Every try that failed, and how."""
        self.refused: list[str] = []
        """Events that were refused for good; there must be none."""
        self._over: set[str] = set()
        """Epochs that others have followed."""

    def accepted(self, ack: Ack) -> None:
        """Takes an acknowledgement."""
        self.acks.append(ack)
        if not ack.epoch or ack.duplicate or ack.epoch in self._over:
            return  # it may tell of a time long gone
        newest = self.newest.get(ack.key)
        if newest is not None and newest.epoch != ack.epoch:
            self._over.add(newest.epoch)
        if newest is None or newest.epoch != ack.epoch or newest.offset < ack.offset:
            # The acknowledgement may come after the clients were told of the epoch that followed.
            self.newest[ack.key] = Top(ack.epoch, ack.offset, ack.sent)

    def slowest(self, since: float = 0.0) -> float:
        """Seconds from the first try to the acknowledgement, at worst."""
        return max((ack.at - ack.sent for ack in self.acks if ack.sent >= since), default=0.0)


class Failed(Exception):  # noqa: N818  # one try failed; the publisher goes on
    """Why a try was not acknowledged."""


class Publisher:
    """Publishes in its channels in turn, the next event only once the last one is acknowledged."""

    def __init__(
        self,
        number: int,
        tenant: str,
        channels: Sequence[str],
        ports: Sequence[int],
        rate: float,
        random: Random,
        log: Log,
        slowdown: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`slowdown`: by what the rate is divided now."""
        self.number = number
        self.tenant = tenant
        self.channels = channels
        self.sent = 0
        self.log = log
        self._ports = ports
        self._home = number
        self._rate = rate
        self._random = random
        self._slowdown = slowdown
        self._stopped = asyncio.Event()

    @property
    def port(self) -> int:
        """The node that it talks to now."""
        return self._ports[self._home % len(self._ports)]

    async def run(self) -> None:
        """Publishes at its rate until stopped; what is under way then is still brought to its end."""
        due = monotonic() + self._random.uniform(0, 1 / self._rate)
        try:
            while not self._stopped.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, due - monotonic())):
                        await self._stopped.wait()
                        break
                await self.publish(self.channels[(self.number + self.sent) % len(self.channels)])
                # A machine that is too busy for the rate would only fall behind more and more.
                due = max(due + self._slowdown() / self._rate, monotonic() - LATE)
        finally:
            await self.close()

    def stop(self) -> None:
        """Lets it publish no more."""
        self._stopped.set()

    async def publish(self, channel: str) -> Ack | None:
        """Publishes one event, however many tries it takes; None if it was refused for good."""
        number = line(self.number, self.sent)
        self.sent += 1
        sent, tries = monotonic(), 0
        data = {"t": self.tenant, "c": channel, "line": number, "at": sent, "who": f"p{self.number}"}
        event: dict[str, object] = {"type": "talk.line", "id": f"l-{number}", "data": data}
        while True:
            tries += 1
            try:
                reply = await self._try(channel, event)
            except (Failed, Refused, aiohttp.ClientError, OSError, TimeoutError) as error:
                what = str(error) if isinstance(error, Failed | Refused) else type(error).__name__
                self.log.troubles.append(Trouble(monotonic(), what, self.number))
                if not what.startswith("error "):  # the node did not answer: the next one may
                    self._home += 1
                await asyncio.sleep(self._random.uniform(PAUSE, min(PAUSE_MOST, PAUSE * 2**tries)))
            else:
                return self._answered(reply, Key(self.tenant, channel), number, sent, tries)

    def _answered(self, reply: Reply, key: Key, number: int, sent: float, tries: int) -> Ack | None:
        if reply.code:
            self.log.refused.append(f"{reply.code} for {number} in {key}")
            return None
        ack = Ack(key, number, reply.epoch, reply.offset, sent, monotonic(), tries, reply.duplicate)
        self.log.accepted(ack)
        return ack

    async def _try(self, channel: str, event: dict[str, object]) -> Reply:
        """Sends the event once. Raises if it may be sent again; a reply with a code is a refusal for good."""
        raise NotImplementedError

    async def close(self) -> None:
        """Lets the connection go."""


class HttpPublisher(Publisher):
    """A backend."""

    _http: aiohttp.ClientSession | None = None

    async def _try(self, channel: str, event: dict[str, object]) -> Reply:
        return await self._post(f"/api/v1/channels/{channel}/events", API_KEYS[self.tenant], event)

    async def _post(self, path: str, bearer: str, body: dict[str, object]) -> Reply:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=PATIENCE),
            )
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._http.post(url, data=msgspec.json.encode(body)) as response:
            reply = _reply.decode(await response.read())
        if reply.code and reply.retryable:
            raise Failed(f"error {reply.code}")
        return reply

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()


class EmitPublisher(HttpPublisher):
    """A user without a connection: `POST /emit`."""

    async def _try(self, channel: str, event: dict[str, object]) -> Reply:
        bearer = token(f"publisher-{self.number}", self.tenant)
        reply = await self._post("/emit", bearer, {**event, "channel": channel})
        if reply.code == "not_found":
            raise Failed("no such path: an old node")
        return reply


class WsPublisher(Publisher):
    """A client that publishes."""

    _wire: Wire | None = None
    _waiting: asyncio.Future[Reply] | None = None
    _id = ""

    async def _try(self, channel: str, event: dict[str, object]) -> Reply:
        if self._wire is None or not self._wire.is_open:
            bearer = token(f"publisher-{self.number}", self.tenant)
            async with asyncio.timeout(PATIENCE):
                self._wire = await connect(self.port, self._text, self._gone, bearer=bearer)
            self._wire.send({"type": "ready"})
        self._id = str(event["id"])
        self._waiting = asyncio.get_running_loop().create_future()
        self._wire.send({**event, "channel": channel})
        try:
            async with asyncio.timeout(PATIENCE):
                reply = await self._waiting
        except TimeoutError:
            self._wire.abort()
            raise
        finally:
            self._waiting = None
        if reply.code and reply.retryable:
            raise Failed(f"error {reply.code}")
        return reply

    def _text(self, frame: bytes) -> None:
        for reply in _read(frame):
            waiting = self._waiting
            if reply.type in ("ack", "error") and reply.id == self._id and waiting is not None and not waiting.done():
                waiting.set_result(reply)

    def _gone(self, code: int) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Failed(f"closed {code}"))

    async def close(self) -> None:
        if self._wire is not None and self._wire.is_open:
            self._wire.leave()
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._wire.gone
            self._wire.abort()


PUBLISHERS: dict[str, type[Publisher]] = {"api": HttpPublisher, "websocket": WsPublisher, "emit": EmitPublisher}
"""By the names that a mix has."""


class Desk:
    """All publishers."""

    def __init__(
        self,
        seed: int,
        tenants: Sequence[str],
        channels: Sequence[str],
        ports: Sequence[int],
        rate: float,
        each: float = 5.0,
        kinds: Sequence[str] = ("api", "api", "api", "api", "websocket"),
        slowdown: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`kinds`: what they publish with, in turn. `slowdown`: by what the rate is divided now."""
        self.log = Log()
        count = max(len(tenants) * 2, round(rate / each))
        self.publishers = [
            PUBLISHERS[kinds[number % len(kinds)]](
                number,
                tenants[number % len(tenants)],
                channels,
                ports,
                rate / count,
                Random(f"{seed} publisher {number}"),
                self.log,
                slowdown,
            )
            for number in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Everyone begins."""
        self._tasks = [asyncio.create_task(publisher.run()) for publisher in self.publishers]

    async def stop(self, within: float) -> None:
        """Everyone ends, after what is under way has been acknowledged or the time is over."""
        for publisher in self.publishers:
            publisher.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within)
            for task in late:
                task.cancel()
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = []
            for result in results:
                if isinstance(result, Exception):
                    raise result
        for publisher in self.publishers:  # those that were asked by hand
            await publisher.close()
