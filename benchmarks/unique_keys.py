"""`python -m benchmarks.unique_keys`: the cost of refusing duplicate JSON keys, in nanoseconds a message.

Each case is a client message. The check has two parts beside decoding: the codec checks the envelope, the gate checks `data`.
Cases marked with * fail the cheap test and need the exact one.
"""

from __future__ import annotations

import json
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import msgspec

from service.protocol import codec, unique_keys
from service.protocol.messages import Publish

ROUNDS, CALLS = 15, 500
BUDGET = 300
"""Maximum nanoseconds of the cheap tests."""


def _text(size: int) -> dict[str, Any]:
    return {"text": ("the quick brown fox jumps over the lazy dog. " * 100)[:size]}


def _rows(count: int) -> dict[str, Any]:
    return {"rows": [{"id": row, "name": f"row {row}", "price": 1.5, "url": f"http://x/{row}"} for row in range(count)]}


DATA: dict[str, Any] = {
    "128 B, text": _text(55),
    "128 B, text with a time and a number": {**_text(12), "at": "2026-11-28T10:00:00Z", "n": 5},
    "128 B, nested": {"order": {"id": "o-17", "lines": [{"sku": "a", "n": 1}]}},
    "4 KiB, text": _text(4_000),
    "4 KiB, text with a time and a number": {**_text(3_960), "at": "2026-11-28T10:00:00Z", "n": 5},
    "4 KiB, text with quotes *": {"text": 'he said "no": ' * 220},
    "4 KiB, nested *": _rows(64),
}


def _nanoseconds(call: Callable[[], object]) -> float:
    empty = min(timeit.repeat(lambda: None, number=CALLS, repeat=ROUNDS))
    return (min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) - empty) / CALLS * 1e9


def measure(data: Any) -> tuple[int, float, float, float]:
    """Returns the message's bytes, and nanoseconds of decoding, of the envelope's check and of the check of `data`."""
    raw = json.dumps(data, separators=(",", ":")).encode()
    message = '{"type":"chat.message","channel":"room:1","id":"m-1","data":' + raw.decode() + "}"
    decoder, read = msgspec.json.Decoder(Publish), msgspec.json.Decoder().decode
    publish, value = decoder.decode(message), read(raw)

    def decode() -> None:
        bytes(decoder.decode(message).data)
        read(raw)

    envelope = _nanoseconds(lambda: codec.is_shortest(codec.size_of(message), publish))
    return len(message), _nanoseconds(decode), envelope, _nanoseconds(lambda: unique_keys.check_value(raw, value, "$"))


def main() -> None:
    """Prints a table."""
    print(f"{'message':40} {'bytes':>6} {'decode':>8} {'envelope':>9} {'data':>8} {'added':>8}   ns")
    added = []
    for name, data in DATA.items():
        size, decode, envelope, rest = measure(data)
        print(f"{name:40} {size:6} {decode:8.0f} {envelope:9.0f} {rest:8.0f} {envelope + rest:8.0f}")
        if not name.endswith("*"):
            added.append(envelope + rest)
    exact = json.dumps(_rows(1000), separators=(",", ":"))[:65_000].rpartition(",{")[0] + "]}"
    print(
        f"the exact test alone, {len(exact)} bytes: {_nanoseconds(lambda: unique_keys.check_text(exact)) / 1e6:.2f} ms"
    )
    print(f"cheap test: median {statistics.median(added):.0f} ns, most {max(added):.0f} ns (budget {BUDGET})")


if __name__ == "__main__":
    main()
