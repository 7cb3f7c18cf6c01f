"""Measures a client's own message inside the process, without sockets: from the bytes that arrive to the bytes that are written.

`python -m benchmarks.way_in` prints the CPU time of a message, and of the parts that can be called alone. A network would hide
the microseconds of a change; `echo` and `rooms` of `python -m benchmarks` measure the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from benchmarks.in_process import Sink, masked, running, settings, settled, timed
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


def message(room: int, event: str, number: int | None = None) -> str:
    """Returns a publish, as the clients of `echo` (with a number as its id) and of `rooms` send it."""
    data = '{"t":1700000000000000,"p":"' + "x" * (PAYLOAD - 28) + '"}'
    name = "" if number is None else f'"id":"e{number}",'
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
    slot.identify(identity)  # this node is alone, so nothing has to be waited for
    accept_connection(node, websocket, buffer, AcceptedUpgrade(slot, identity, "bearer"))
    websocket.data_received(masked('{"type":"ready"}'))
    websocket.data_received(masked(f'{{"type":"subscribe","id":"s","channel":"room:{room}"}}'))
    await settled()
    return websocket, sink


async def measured(members: int, rooms: int, event: str, *, named: bool, messages: int) -> tuple[float, float, float]:
    """Returns microseconds, writes and deliveries of one message, where all members of all rooms publish in turn."""
    async with running() as service:
        every = [await connected(service, number, number % rooms) for number in range(members * rooms)]
        turns = max(1, messages // len(every))
        count = turns * len(every)
        frames = [
            masked(message(number % len(every) % rooms, event, number if named else None))
            for number in range(count + len(every))
        ]

        async def play(turns: range) -> None:
            for turn in turns:
                for (websocket, _), frame in zip(every, frames[turn * len(every) :], strict=False):
                    websocket.data_received(frame)
                await settled()

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
    frame, text = masked(message(1, "plain", 1)), message(1, "plain", 1)
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
"""Members of a room, rooms, event, and whether each message has an id and so an ack."""


def main(words: Sequence[str] | None = None) -> None:
    """Prints the costs as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.way_in", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--only", metavar="CASE", choices=sorted(CASES))
    asked = parser.parse_args(words)
    shown: dict[str, Any] = {}
    for name, (members, rooms, event, named) in CASES.items():
        if asked.only in (None, name):
            rounds = [
                asyncio.run(measured(members, rooms, event, named=named, messages=asked.messages))
                for _ in range(asked.rounds)
            ]
            spent = [round_[0] for round_ in rounds]
            shown[name] = {
                "us": round(statistics.median(spent), 2),
                "lowest": round(min(spent), 2),
                "writes": round(rounds[0][1], 2),
                "us_a_delivery": round(statistics.median(spent) / rounds[0][2], 2),
            }
    if asked.only is None:
        shown["parts"] = {name: round(value, 2) for name, value in parts(asked.messages).items()}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")


if __name__ == "__main__":
    main()
