"""A crowd in a process of its own: a thousand clients then do not slow down the one who times the faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.faults.books import CrowdBooks, Diary, Key, Top
from tests.faults.clients.crowd import Cast, Crowd

CHECKOUT = Path(__file__).parents[3]
ANSWER = 300.0
"""Seconds that one request may take."""
T = TypeVar("T")
_SIZE = struct.Struct(">I")


class Order(msgspec.Struct):
    """A request: a method of Crowd, and its argument. Before the first one comes the Cast."""

    do: str
    seconds: float = 0.0
    port: int = 0
    transport: str = ""
    count: int = 0
    at: list[tuple[Key, Top]] = []


class CrowdApart:
    """The same questions as to a `Crowd`, answered by another process."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._process: asyncio.subprocess.Process | None = None

    async def come(self, within: float, nice: int = 0) -> None:
        """Starts the process, by so much nicer than this one, connects everyone and waits until everyone has joined."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.clients.apart"),
            cwd=CHECKOUT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if nice:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)
        await self._ask(self._cast, bool)
        await self._ask(Order("come", seconds=within), bool)

    async def joined(self) -> int:
        """As Crowd's."""
        return await self._ask(Order("joined"), int)

    async def joined_at(self, port: int, transport: str = "") -> int:
        """As Crowd's."""
        return await self._ask(Order("joined_at", port=port, transport=transport), int)

    async def doom(self, port: int, count: int) -> list[str]:
        """As Crowd's."""
        return await self._ask(Order("doom", port=port, count=count), list[str])

    async def below(self, newest: dict[Key, Top]) -> int:
        """As Crowd's."""
        return await self._ask(Order("below", at=list(newest.items())), int)

    async def polling(self) -> list[tuple[str, str]]:
        """As Crowd's."""
        return await self._ask(Order("polling"), list[tuple[str, str]])

    async def behind(self, tops: dict[Key, Top]) -> int:
        """As Crowd's."""
        return await self._ask(Order("behind", at=list(tops.items())), int)

    async def diaries(self) -> list[Diary]:
        """As Crowd's."""
        return await self._ask(Order("diaries"), list[Diary])

    async def seen(self) -> CrowdBooks:
        """As Crowd's."""
        return await self._ask(Order("seen"), CrowdBooks)

    async def leave(self) -> None:
        """Everyone goes, and the process ends."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            async with asyncio.timeout(15):
                with contextlib.suppress(ConnectionError):
                    process.stdin.write(_framed(Order("leave")))
                    process.stdin.close()
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _ask(self, order: Order | Cast, kind: type[T]) -> T:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER):
            self._process.stdin.write(_framed(order))
            try:
                answer = await _read(self._process.stdout)
            except asyncio.IncompleteReadError:
                raise AssertionError(
                    f"the crowd's process ended while asked to {getattr(order, 'do', 'come')}"
                ) from None
        return msgspec.msgpack.decode(answer, type=kind)


def _framed(message: Any) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return _SIZE.pack(len(payload)) + payload


async def _read(stream: asyncio.StreamReader) -> bytes:
    (size,) = _SIZE.unpack(await stream.readexactly(_SIZE.size))
    return await stream.readexactly(size)


# --- the other side -----------------------------------------------------------------------------------------------------


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer)
    crowd = Crowd(msgspec.msgpack.decode(await _read(orders), type=Cast))
    _answer(True)
    try:
        while True:
            order = msgspec.msgpack.decode(await _read(orders), type=Order)
            if order.do == "leave":
                break
            _answer(await _obey(crowd, order))
    except asyncio.IncompleteReadError:
        pass  # whoever asked is gone
    finally:
        await crowd.leave()


async def _obey(crowd: Crowd, order: Order) -> Any:
    at = dict(order.at)
    match order.do:
        case "come":
            await crowd.come(order.seconds)
            return True
        case "joined":
            return await crowd.joined()
        case "joined_at":
            return await crowd.joined_at(order.port, order.transport)
        case "doom":
            return await crowd.doom(order.port, order.count)
        case "below":
            return await crowd.below(at)
        case "behind":
            return await crowd.behind(at)
        case "polling":
            return await crowd.polling()
        case "diaries":
            return await crowd.diaries()
        case "seen":
            return await crowd.seen()
    raise AssertionError(f"nobody knows how to {order.do}")


def _answer(message: Any) -> None:
    sys.stdout.buffer.write(_framed(message))
    sys.stdout.buffer.flush()


def main() -> None:
    """Runs the crowd until told to leave, or until whoever asked is gone."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(), debug=False)


if __name__ == "__main__":
    main()
