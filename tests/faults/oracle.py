"""The oracle: from what publishers were acknowledged and clients applied, the four counts that must be 0. Pure.

The promise that it judges: between two acknowledged positions a client sees every durable event of its channel once, in
order, or is told explicitly that it can't.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from tests.faults.books import Ack, Diary, Key, Sighting, Stretch, Told, Top, publisher_of, sightings

EXAMPLES = 12
"""Findings that are told in words; the rest is counted."""


@dataclass
class Counts:
    """The judgement."""

    lost: int = 0
    """Acknowledged durable events that a client neither applied nor was told to be missing."""
    duplicated: int = 0
    """Events that a client applied twice without having been told of a break between."""
    inverted: int = 0
    """Events that a client applied before an earlier one of the same publisher or the same epoch."""
    foreign: int = 0
    """Payloads of one tenant that a client of another one got."""
    announced: int = 0
    """Acknowledged events that a client did not get and was told so."""
    behind: int = 0
    """Clients that had not come to the top of their channel in the end."""
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.duplicated or self.inverted or self.foreign or self.behind)

    def note(self, sentence: str) -> None:
        """Keeps a finding to be shown."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(sentence)


class _Channel:
    """One channel as the acknowledgements tell of it."""

    def __init__(self) -> None:
        self.order: dict[str, int] = {}
        """Epochs, as they were first told."""
        self.by_epoch: dict[str, list[Ack]] = defaultdict(list)
        self.doubtful: list[Ack] = []
        """Those of which nobody can say in which epoch they were accepted."""
        self.given_twice: set[tuple[str, int]] = set()
        """Places of two events, as when a store was set back: a position there does not say which of them was seen. Whoever was
        there has to be told in the end."""


def judge(acks: Sequence[Ack], diaries: Sequence[Diary], tops: dict[Key, Top] | None = None) -> Counts:
    """Compares. `tops`: where each channel ended, which every client must have come to."""
    counts = Counts()
    channels = _channels(acks, diaries)
    for diary in diaries:
        counts.foreign += diary.foreign
        if diary.foreign:
            counts.note(f"client {diary.client} got {diary.foreign} payloads that are not of {diary.key}")
        _order(diary, counts)
        _repetitions(diary, counts)
        _losses(diary, channels[diary.key], counts)
        if tops is not None and diary.key in tops:
            _arrival(diary, tops[diary.key], counts)
    return counts


def _channels(acks: Sequence[Ack], diaries: Sequence[Diary]) -> dict[Key, _Channel]:
    channels: dict[Key, _Channel] = defaultdict(_Channel)
    seen: dict[Key, list[Sighting]] = defaultdict(list)
    for sighting in sightings(acks, diaries):
        order = channels[sighting.key].order
        order.setdefault(sighting.epoch, len(order))
        seen[sighting.key].append(sighting)
    applied = {
        (diary.key, line): stretch.epoch for diary in diaries for stretch in diary.stretches for line in stretch.lines
    }
    for ack in acks:
        epoch = ack.epoch or _epoch_at(ack, seen[ack.key]) or applied.get((ack.key, ack.line))
        channel = channels[ack.key]
        (channel.by_epoch[epoch] if epoch else channel.doubtful).append(ack)
    lines: dict[tuple[Key, str, int], set[int]] = defaultdict(set)
    for key, channel in channels.items():
        for epoch, some in channel.by_epoch.items():
            for ack in some:
                lines[key, epoch, ack.offset].add(ack.line)
    for diary in diaries:
        for stretch in diary.stretches:
            for offset, line in zip(stretch.offsets, stretch.lines, strict=True):
                lines[diary.key, stretch.epoch, offset].add(line)
    for (key, epoch, offset), given in lines.items():
        if len(given) > 1:
            channels[key].given_twice.add((epoch, offset))
    return channels


def _epoch_at(ack: Ack, seen: Sequence[Sighting]) -> str | None:
    """The epoch of an acknowledgement that does not tell it: the one told both before and after it."""
    before = [sighting.epoch for sighting in seen if sighting.at <= ack.sent]
    after = [sighting.epoch for sighting in seen if sighting.at > ack.at]
    if not before or (after and after[0] != before[-1]):
        return None
    return before[-1] if len({one.epoch for one in seen if ack.sent <= one.at <= ack.at} | {before[-1]}) == 1 else None


# --- once, in order -----------------------------------------------------------------------------------------------------


def _order(diary: Diary, counts: Counts) -> None:
    for stretch in diary.stretches:
        newest: dict[int, int] = {}
        last = stretch.base
        for offset, line in zip(stretch.offsets, stretch.lines, strict=True):
            whose = publisher_of(line)
            if offset <= last or line < newest.get(whose, -1):
                counts.inverted += 1
                counts.note(f"client {diary.client} applied {line} at offset {offset} of {diary.key} after later ones")
            last = max(last, offset)
            newest[whose] = max(line, newest.get(whose, -1))


def _repetitions(diary: Diary, counts: Counts) -> None:
    seen: set[int] = set()
    for stretch in diary.stretches:
        if stretch.told is not Told.KEPT:
            seen = set()
        for line in stretch.lines:
            if line in seen:
                counts.duplicated += 1
                counts.note(f"client {diary.client} applied {line} of {diary.key} twice")
            seen.add(line)


# --- every one ----------------------------------------------------------------------------------------------------------


class _Fate(Enum):
    """What became of an event that a client did not apply."""

    BEFORE = "before"
    """It came before the client's time."""
    ANNOUNCED = "announced"
    LOST = "lost"


def _losses(diary: Diary, channel: _Channel, counts: Counts) -> None:
    applied = {line for stretch in diary.stretches for line in stretch.lines}
    for epoch, acks in channel.by_epoch.items():
        for ack in acks:
            if ack.line not in applied:
                _count(diary, ack, _fate(diary, channel, epoch, ack.offset), counts)
    for ack in channel.doubtful:
        fates = {_fate(diary, channel, epoch, ack.offset) for epoch in channel.order}
        # It counts as lost only if it is, whichever epoch it was accepted in.
        _count(diary, ack, _Fate.LOST if fates == {_Fate.LOST} else _Fate.ANNOUNCED, counts)


def _count(diary: Diary, ack: Ack, fate: _Fate, counts: Counts) -> None:
    if fate is _Fate.ANNOUNCED:
        counts.announced += 1
    elif fate is _Fate.LOST:
        counts.lost += 1
        path = " → ".join(f"{one.told.value} {one.epoch[:6]}:{one.base}-{one.top}" for one in diary.stretches[-4:])
        counts.note(
            f"client {diary.client} lacks {ack.line} at {ack.epoch[:6]}:{ack.offset} of {ack.key}; its way: {path or 'none'}"
        )


def _fate(diary: Diary, channel: _Channel, epoch: str, offset: int) -> _Fate:
    """What the client's way through the epochs says of an event at (epoch, offset) that it has not applied."""
    stretches = diary.stretches
    here = [index for index, stretch in enumerate(stretches) if stretch.epoch == epoch]
    if not here:
        later = channel.order[epoch]
        into = [index for index, stretch in enumerate(stretches) if channel.order[stretch.epoch] > later]
        return _jump(stretches, into[0]) if into else _Fate.LOST
    below = [index for index in here if stretches[index].base < offset]
    if not below:
        return _jump(stretches, here[0])
    passed = below[-1]
    if passed + 1 == len(stretches):
        return _Fate.LOST
    if offset <= stretches[passed].top and (epoch, offset) not in channel.given_twice:
        return _Fate.LOST
    return _jump(stretches, passed + 1)


def _jump(stretches: Sequence[Stretch], into: int) -> _Fate:
    """What the beginning of this stretch said of all that it passes over."""
    return {Told.FRESH: _Fate.BEFORE, Told.LOST: _Fate.ANNOUNCED, Told.KEPT: _Fate.LOST}[stretches[into].told]


def _arrival(diary: Diary, top: Top, counts: Counts) -> None:
    last = diary.stretches[-1] if diary.stretches else None
    if last is None or (last.epoch, last.top) != (top.epoch, top.offset):
        counts.behind += 1
        at = f"{last.epoch[:6]}:{last.top}" if last is not None else "nowhere"
        counts.note(f"client {diary.client} ended at {at} of {diary.key}, which is at {top.epoch[:6]}:{top.offset}")
