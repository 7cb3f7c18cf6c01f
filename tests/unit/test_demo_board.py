"""The shop of the live board: every second has one sample that the contract accepts, also those that nobody watched."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
from tidewire import NewEvent

from demo.simulations.board import KEPT, Board
from service.assets import demo_folder
from service.contract.gate import Gate
from service.contract.load import load
from service.core.identity import backend

NOW = 1_700_000_000.4


def check(events: Iterable[NewEvent]) -> None:
    """The gate accepts them, or raises."""
    gate = Gate(load(demo_folder() / "contract.yaml"))
    for event in events:
        data = msgspec.json.encode(event.data)
        gate.validate(
            backend("default"), channel=event.channel, type=event.type, data=data, id="x", key=None, sender=None, at=0
        )


def seconds(events: Iterable[NewEvent]) -> list[int]:
    return [event.data["second"] for event in events]


def test_samples_of_two_hours_are_valid_and_without_a_gap() -> None:
    board = Board(random.Random(1), NOW)
    samples = board.samples(NOW)
    for minute in range(120):
        samples += board.samples(NOW + 60 * minute)
    check(samples)
    assert seconds(samples) == list(range(int(NOW) - KEPT + 1, int(NOW) + 119 * 60 + 1))
    assert {"Payment provider is slow", "Payment provider has recovered", "900 items delivered"} == {
        event.data["note"] for event in samples if "note" in event.data
    }


def test_unwatched_time_is_filled_up_to_the_kept_samples() -> None:
    board = Board(random.Random(2), NOW)
    board.samples(NOW)
    later = NOW + 90 * 60
    assert seconds(board.samples(later)) == list(range(int(later) - KEPT + 1, int(later) + 1))
    assert board.samples(later) == []


def test_newest_values_have_a_key_each() -> None:
    board = Board(random.Random(3), NOW)
    board.samples(NOW)
    newest = board.newest(NOW)
    check(newest)
    assert len({event.data["metric"] for event in newest}) == len(newest) == 6
