"""How far each channel has come: as NATS keeps it, and as this node has heard it.

Of the two together comes the one thing that NATS itself does not tell: that it has lost something which it had accepted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from service.adapters.nats.config import NatsConfig, Subjects
from service.adapters.nats.connection.jetstream import Conflict, Stream, Write
from service.adapters.nats.records import Entry, Head, Heard, decode, encode, new_head
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds

REMEMBERED = 10_000
"""Channels whose head this node remembers after publishing; for others a publish reads it first."""


KEPT_TOGETHER = 200
"""Heads of empty channels written in one batch."""


class Known(NamedTuple):
    """A head, and the sequence of its message; 0 if there is none yet."""

    sequence: int
    head: Head


class Heads:
    """Every head that this node knows."""

    def __init__(self, config: NatsConfig, subjects: Subjects, stream: Stream, clock: Clock) -> None:
        self._config = config
        self._subjects = subjects
        self._stream = stream
        self._clock = clock
        self._remembered: OrderedDict[ChannelKey, Known] = OrderedDict()
        self._published: OrderedDict[ChannelKey, Heard] = OrderedDict()
        """How far each channel had come for certain whose head is not what was remembered of it, or may not be."""
        self._followed: set[ChannelKey] = set()
        self._heard: dict[ChannelKey, Heard] = {}
        """How far each channel that is followed has come, as far as this node knows."""
        self._doubted: set[ChannelKey] = set()
        """Those of which NATS has lost something. Nothing is delivered of them until they have a new epoch."""

    def follow(self, channel: ChannelKey) -> None:
        """From here on what is heard of the channel is held against what is read of it."""
        self._followed.add(channel)

    def unfollow(self, channel: ChannelKey) -> None:
        """Until here."""
        self._followed.discard(channel)
        self._heard.pop(channel, None)
        self._doubted.discard(channel)

    def doubt(self, channel: ChannelKey) -> None:
        """NATS has lost something of the channel: nothing of it fits before it has a new epoch."""
        self._doubted.add(channel)

    def heard(self, channel: ChannelKey) -> Heard | None:
        """How far the channel has come, as far as this node has heard or read."""
        return self._heard.get(channel)

    def is_over(self, channel: ChannelKey, head: Head, heard: Heard | None) -> bool:
        """Whether the head's epoch has to end, for what had been heard of it before it was asked for."""
        return heard is not None and _is_over(head, heard, channel in self._doubted)

    def forget(self, channel: ChannelKey) -> None:
        """The channel's head is not what was remembered, and must not be less."""
        known = self._remembered.pop(channel, None)
        if known is not None:
            self._published[channel] = known.head.heard
            self._published.move_to_end(channel)
            if len(self._published) > REMEMBERED:
                self._published.popitem(last=False)

    def reconnected(self) -> None:
        """What was known before may be outdated, and still shows what must not be lost."""
        for channel, known in list(self._remembered.items()):
            if self._heard.get(channel, known.head).epoch == known.head.epoch:
                self.note(channel, known.head)
            self.forget(channel)

    def clear(self) -> None:
        """Forgets what was heard."""
        self._followed.clear()
        self._published.clear()
        self._heard.clear()
        self._doubted.clear()

    async def known(self, channel: ChannelKey, told: Heard | None = None) -> Known:
        """The channel's head, from the stream; a new one if there is none, or NATS has lost something it had accepted: what
        this node has heard or published, or was `told`."""
        # Before asking: what is heard while the answer is on its way may be newer than it.
        heard, doubted = self._heard.get(channel), channel in self._doubted
        published = self._published.get(channel)
        kept = await self._stream.last(self._subjects.head(channel))
        if kept is None:
            return Known(0, new_head(milliseconds(self._clock)))
        known = Known(kept.sequence, decode(kept.data, Head))
        lost = next((one for one in (published, told) if one is not None and known.head.lacks(one)), None)
        if heard is not None and _is_over(known.head, heard, doubted):
            lost = heard
        if lost is not None:
            new = known.head.in_new_epoch(milliseconds(self._clock), lost.epoch)
            known = await self._write_head(channel, new, after=kept.sequence)
        if published is not None and self._published.get(channel) is published:
            del self._published[channel]
        if heard is not None and known.head.epoch != heard.epoch:
            self.note(channel, known.head)
        return known

    async def end_epoch(self, channel: ChannelKey, epoch: str) -> None:
        """Begins a new epoch in place of this one, if it is not over already."""
        known = await self.known(channel)
        if known.sequence and known.head.epoch == epoch:
            new = known.head.in_new_epoch(milliseconds(self._clock))
            known = await self._write_head(channel, new, after=known.sequence)
            self.note(channel, known.head)

    async def open(self, channel: ChannelKey, *, anew: bool = False) -> Known:
        """The same, and from now on it is there. `anew`: an empty channel's is there for `config.empty_ttl`."""
        known = await self.known(channel)
        if not known.sequence or (anew and known.head.is_empty):
            known = await self._write_head(channel, known.head, after=known.sequence)
        return known

    async def keep(self, empty: Mapping[ChannelKey, int]) -> dict[ChannelKey, int]:
        """Writes the heads of empty channels once more, so that they stay for another `config.empty_ttl`. `empty`: each with the
        sequence that its head had the last time; one that has another sequence by now has been written by another node.
        Returns those that are still empty, with the sequence that their head has now."""
        subjects = {self._subjects.head(channel): channel for channel in empty}
        found: dict[ChannelKey, Known] = {
            subjects[subject]: Known(kept.sequence, decode(kept.data, Head))
            for subject, kept in (await self._stream.several(list(subjects))).items()
        }
        left = {channel: known for channel, known in found.items() if known.head.is_empty}
        due = [channel for channel, known in left.items() if known.sequence == empty[channel]]
        for start in range(0, len(due), KEPT_TOGETHER):
            part = due[start : start + KEPT_TOGETHER]
            try:
                await self._write_again(part, left)
            except Conflict:  # somebody else has written one: the others must not wait for it
                for channel in part:
                    with suppress(Conflict):
                        await self._write_again([channel], left)
        return {channel: known.sequence for channel, known in left.items()}

    async def _write_again(self, channels: Sequence[ChannelKey], known: dict[ChannelKey, Known]) -> None:
        last = await self._stream.write(
            [self.write(channel, known[channel].head, known[channel].sequence) for channel in channels]
        )
        for sequence, channel in enumerate(channels, last - len(channels) + 1):
            known[channel] = Known(sequence, known[channel].head)

    async def _write_head(self, channel: ChannelKey, head: Head, after: int) -> Known:
        try:
            return Known(await self._stream.write([self.write(channel, head, after)]), head)
        except Conflict:  # somebody else was first
            return await self.known(channel)

    def write(self, channel: ChannelKey, head: Head, after: int) -> Write:
        """The message that puts a head in place of the one with the sequence `after`."""
        kept = self._config.empty_ttl if head.is_empty else self._config.position_ttl
        ttl = max(kept, head.ttl, head.state_ttl)
        return Write(self._subjects.head(channel), encode(head), ttl, only=True, after=after)

    def remembered(self, channel: ChannelKey) -> Known | None:
        """What `remember` was told last, unless it has been forgotten since."""
        return self._remembered.get(channel)

    def remember(self, channel: ChannelKey, known: Known) -> None:
        """Saves the next publish into the channel a question."""
        self._remembered[channel] = known
        self._remembered.move_to_end(channel)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)

    def note(self, channel: ChannelKey, head: Head) -> None:
        """Notes how far a subscribed channel has come: if its head is found before that, NATS has lost something."""
        if channel not in self._followed:
            return
        heard, read = self._heard.get(channel), head.heard
        if heard is None or heard.epoch != read.epoch:
            self._doubted.discard(channel)
        else:
            if heard.offset > read.offset:
                read = read._replace(offset=heard.offset, id=heard.id)
            if heard.state_version > read.state_version:
                read = read._replace(state_version=heard.state_version, state_id=heard.state_id)
        self._heard[channel] = read

    def fits(self, channel: ChannelKey, entry: Entry) -> bool:
        """Notes an event; False if another one had its offset or state version before, so that NATS must have lost that."""
        heard = self._heard.get(channel)
        if heard is None or heard.epoch != entry.epoch:
            self._doubted.discard(channel)
            heard = Heard(entry.epoch)
        if channel in self._doubted:
            return False
        if entry.offset is not None:
            if entry.offset < heard.offset or (entry.offset == heard.offset and entry.id != heard.id):
                return False
            heard = heard._replace(offset=entry.offset, id=entry.id)
        elif entry.state_version is not None:
            if entry.state_version < heard.state_version or (
                entry.state_version == heard.state_version and entry.id != heard.state_id
            ):
                return False
            heard = heard._replace(state_version=entry.state_version, state_id=entry.id)
        self._heard[channel] = heard
        return True


def _is_over(head: Head, heard: Heard, doubted: bool) -> bool:
    """Whether the head's epoch has to end, for what this node has heard of it."""
    return head.lacks(heard) or (doubted and head.epoch == heard.epoch)
