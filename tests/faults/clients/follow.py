"""One channel as one client sees it, by the rule of docs/protocol.md; and the messages that a client reads."""

from __future__ import annotations

import msgspec

from tests.faults.books import Diary, Key, Stretch, Told, Top


class Data(msgspec.Struct):
    """The payload: where it belongs, what it is, and when it was first sent."""

    t: str = ""
    c: str = ""
    line: int = 0
    at: float = 0.0
    user: str = ""


class Message(msgspec.Struct):
    """As much of any message as a client needs."""

    type: str
    channel: str = ""
    id: str | None = None
    epoch: str = ""
    offset: int | None = None
    rev: int | None = None
    last: str | None = None
    recovered: bool | None = None
    events: list[Message] = []
    data: Data | None = None
    code: str | int = ""
    retryable: bool = False
    after: float = 0.0


class Follow:
    """One channel as one client sees it: the position, and the diary."""

    __slots__ = ("diary", "epoch", "joined", "last", "offset", "request", "stretch")

    def __init__(self, client: int, key: Key) -> None:
        self.diary = Diary(client, key)
        self.stretch: Stretch | None = None
        self.epoch = ""
        self.offset = 0
        self.last: str | None = None
        self.request: str | None = None
        """The id of the `subscribe` under way, where there is one."""
        self.joined = False

    def since(self) -> dict[str, object] | None:
        """The position, as `subscribe` gives it."""
        if self.stretch is None:
            return None
        return {"epoch": self.epoch, "offset": self.offset, **({"id": self.last} if self.last is not None else {})}

    def is_below(self, top: Top | None) -> bool:
        """Whether something is lacking up to there. Another epoch lacks nothing if it was told of later than that."""
        if top is None:
            return False
        if self.epoch == top.epoch:
            return self.offset < top.offset
        return self.stretch is None or self.stretch.at < top.at

    def start(self, message: Message, now: float) -> list[Message]:
        """Takes `subscribed`; returns the events to apply before its position holds."""
        offset = message.offset or 0
        missed = message.events
        continues = message.recovered is not False and self.stretch is not None and message.epoch == self.epoch
        if not continues:
            told = Told.KEPT
            if self.stretch is None:
                told = Told.FRESH
            elif message.recovered is False:
                told = Told.LOST
            base = missed[0].offset - 1 if missed and missed[0].offset else offset
            self.stretch = Stretch(message.epoch, base, told, now, base)
            self.diary.stretches.append(self.stretch)
            self.epoch, self.offset = message.epoch, base
        return [event for event in missed if (event.offset or 0) > self.offset]

    def apply(self, event: Message) -> None:
        """Does what an application would, then moves the position."""
        assert self.stretch is not None
        assert event.offset is not None
        data = event.data
        if data is None or data.t != self.diary.key.tenant or data.c != self.diary.key.channel:
            self.diary.foreign += 1
        self.stretch.offsets.append(event.offset)
        self.stretch.lines.append(data.line if data is not None else 0)
        self.move(event.offset, event.id)

    def move(self, offset: int, last: str | None) -> None:
        """Moves the position."""
        assert self.stretch is not None
        self.offset = self.stretch.top = offset
        self.last = last
