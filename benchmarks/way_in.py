"""Measures a client's own message inside the process, without sockets: from the bytes that arrive to the bytes that are written.

`python -m benchmarks.way_in` prints the CPU time of a message, and of the parts that can be called alone. A network would hide
the microseconds of a change; `echo` and `rooms` of `python -m benchmarks` measure the whole.

`--redis` measures durable events through a Redis that it starts, beside the same without it. Only there is a network, to Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from benchmarks.in_process import Sink, masked, reached, running, settings, settled, started_redis, timed
from benchmarks.peers import tidewire
from service.app import Service
from service.contract.load import load
from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.session import Subscription
from service.protocol.codec import decode
from service.realtime.session.accept import accept_connection
from service.realtime.session.handshake import AcceptedUpgrade
from service.realtime.session.pre_auth_buffer import PreAuthBuffer
from service.web.ws.frames import parse_single_text
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import WebSocket, WebSocketContext

PAYLOAD = 128
"""Bytes of an event's data, as in `echo`."""
MESSAGES = 20_000
"""Messages of one round."""


class Cost(Struct, frozen=True):
    """The cost of one message."""

    microseconds: float
    """CPU time of the process; the median of the rounds."""
    writes: float
    deliveries: float


def message(room: int, event: str, id_: str | None = None) -> str:
    """Returns a publish, as the clients of `echo` (with an id) and of `rooms` send it."""
    data = '{"t":1700000000000000,"p":"' + "x" * (PAYLOAD - 28) + '"}'
    name = "" if id_ is None else f'"id":"{id_}",'
    return f'{{"type":"bench.{event}","channel":"room:{room}",{name}"data":{data}}}'


async def connected(service: Service, number: int, room: int) -> tuple[WebSocket, Sink]:
    """Returns a connection that is live in its room."""
    node, sink = service.node, Sink()
    context = WebSocketContext(
        node.bounds, service.clock, service.metrics, ReadScheduler(service.clock, service.metrics, 10.0)
    )
    identity = Identity("default", f"user-{number}")
    websocket = WebSocket(context, sink, account=node.streams.budget.account("default"))
    websocket.handler = buffer = PreAuthBuffer(websocket)
    slot = node.admission.slots.acquire("127.0.0.1")
    confirming = slot.identify(identity)
    if confirming is not None:
        await confirming
    accept_connection(node, websocket, buffer, AcceptedUpgrade(slot, identity, "bearer"))
    websocket.data_received(masked('{"type":"ready"}'))
    websocket.data_received(masked(f'{{"type":"subscribe","id":"s","channel":"room:{room}"}}'))
    return websocket, sink


async def measured(
    members: int, rooms: int, event: str, *, named: bool, messages: int, redis: str | None = None
) -> tuple[float, float, float]:
    """Returns microseconds, writes and deliveries of one message, where all members of all rooms publish in turn. `redis`: the
    URL of the broker, if it is Redis."""
    async with running(redis) as service:
        size = members * rooms
        every = [await connected(service, number, number % rooms) for number in range(size)]
        written = service.metrics.messages.messages_out.labels
        await reached(written("subscribed"), size)
        turns = max(1, messages // size)
        count = turns * size
        run = secrets.token_hex(2)  # Redis would take the ids of an earlier run for repeats
        frames = [
            masked(message(number % size % rooms, event, f"{run}{number}" if named else None))
            for number in range(count + size)
        ]

        async def play(turns: range) -> None:
            for turn in turns:
                for (websocket, _), frame in zip(every, frames[turn * size :], strict=False):
                    websocket.data_received(frame)
                await settled()
                if redis is not None:
                    played[0] += 1
                    await reached(written("ack"), played[0] * size * named)
                    await reached(written(f"bench.{event}"), played[0] * size * members)

        played = [0]
        await play(range(turns, turns + 1))
        writes = sum(sink.writes for _, sink in every)
        began = time.process_time()
        await play(range(turns))
        spent = time.process_time() - began
        writes = sum(sink.writes for _, sink in every) - writes
        for websocket, _ in every:
            websocket.connection_lost(None)
        return spent / count * 1e6, writes / count, float(members)


def parts(count: int) -> dict[str, float]:
    """Returns the microseconds of the parts of a message's way that can be called alone."""
    frame, text = masked(message(1, "plain", "e1")), message(1, "plain", "e1")
    gate = Service(settings(), load(Path(tidewire.CONTRACT))).node.gate
    ann = Identity("default", "ann")
    subscription = Subscription(ChannelKey("default", "room:1"), None)
    command = cast(Any, decode(text))
    data = bytes(command.data)

    def validate() -> None:
        gate.validate(ann, "room:1", "bench.plain", data, "e", None, "ann", 1, subscription)

    return {
        "unmask and decode UTF-8": timed(lambda: parse_single_text(frame, 65_536), count),
        "decode the command": timed(lambda: decode(text), count),
        "gate": timed(validate, count),
    }


CASES: dict[str, tuple[int, int, str, bool]] = {
    "echo": (1, 100, "plain", True),
    "rooms": (10, 100, "plain", False),
    "durable echo": (1, 100, "durable", True),
}
STORED = {"durable echo": CASES["durable echo"]}
"""The cases of `--redis`. No rooms: nothing else keeps this node busy, so the events of a room come back one by one."""
"""Members of a room, rooms, event, and whether each message has an id and so an ack."""


def main(words: Sequence[str] | None = None) -> None:
    """Prints the costs as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.way_in", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--only", metavar="CASE", choices=sorted(CASES))
    parser.add_argument("--redis", action="store_true", help="durable events through a Redis, beside without")
    asked = parser.parse_args(words)
    shown: dict[str, Any] = {}
    with started_redis() if asked.redis else nullcontext() as redis:
        for name, case in (STORED if asked.redis else CASES).items():
            if asked.only in (None, name):
                shown[name] = _cost(case, asked.rounds, asked.messages)
                if redis is not None:
                    shown[f"{name} through Redis"] = _cost(case, asked.rounds, asked.messages, redis)
    if asked.only is None and not asked.redis:
        shown["parts"] = {name: round(value, 2) for name, value in parts(asked.messages).items()}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")


def _cost(case: tuple[int, int, str, bool], rounds: int, messages: int, redis: str | None = None) -> dict[str, float]:
    members, rooms, event, named = case
    runs = [
        asyncio.run(measured(members, rooms, event, named=named, messages=messages, redis=redis)) for _ in range(rounds)
    ]
    spent = [run[0] for run in runs]
    return {
        "us": round(statistics.median(spent), 2),
        "lowest": round(min(spent), 2),
        "writes": round(runs[0][1], 2),
        "us_a_delivery": round(statistics.median(spent) / members, 2),
    }


if __name__ == "__main__":
    main()
