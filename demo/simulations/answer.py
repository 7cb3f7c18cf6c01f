"""The streaming answer: writes answers token by token, as a language model would, into the conversation that asked.

A question is an `ask.question` in a channel that only this backend reads. Its answer is `answer.begin`, some `answer.delta`
and `answer.end` in the channel of the conversation, all durable: who reconnects, reloads or comes later reads the same text.
Without a question, it only waits.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tidewire import AsyncTidewire, EventsMissedError, TidewireError

from .api import Api

DESK = "ask:main"
WINDOW = 0.05
"""Seconds: tokens that come within it are one delta. It bounds the publishes of an answer to 20 a second."""
MAX_WAITING = 3
"""Questions of one conversation that are answered or wait for that."""
MAX_ANSWERS = 8
"""Answers that are written at once, in all conversations."""
TAIL = 20
"""Questions from before the start of this backend that it reads."""
STALE = 60.0
"""Age in seconds above which a question gets no answer. An earlier run of this backend may have answered it."""
MAX_QUESTIONS = 50
"""Questions that are answered or wait for that, in all conversations."""
ANSWERS: dict[str, str] = {
    one["question"]: one["answer"]
    for one in json.loads((Path(__file__).parent / "answers.json").read_text(encoding="utf-8"))
}
UNKNOWN = (
    "There is no language model behind this page. It has a few answers by heart, and this is none of them. The way is real, "
    "though: a backend writes these words one by one, and each one is a durable event in the channel of this conversation. Cut "
    "the network or reload the page now, and the text goes on where it was."
)
TOO_MANY = "Too many questions wait already. Ask again when one of them has its answer."


async def tokens(text: str, api: Api) -> AsyncIterator[str]:
    """Yields a text in small pieces and at an uneven pace, as a language model does."""
    for token in re.findall(r"\s*\S{1,6}|\s+$", text):
        await api.sleep(api.random.uniform(0.01, 0.05) + (0.25 if token.endswith((".", ":", "?")) else 0))
        yield token


async def joined(pieces: AsyncIterator[str], window: float) -> AsyncIterator[str]:
    """Joins the pieces that come within a window, or while the one before is being published."""
    waiting: list[str] = []
    arrived = asyncio.Event()

    async def read() -> None:
        async for piece in pieces:
            waiting.append(piece)
            arrived.set()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: arrived.set())
    try:
        while not reading.done() or waiting:
            await arrived.wait()
            await asyncio.sleep(window)
            arrived.clear()
            if waiting:
                text = "".join(waiting)
                waiting.clear()
                yield text
        reading.result()
    finally:
        reading.cancel()


class Answer:
    """One answer, written into its conversation. Each event has an id, so that a repeated publish is stored once."""

    def __init__(self, client: AsyncTidewire, conversation: str, answer: str) -> None:
        self._client = client
        self._channel = f"conversation:{conversation}"
        self._answer = answer
        self._text = ""
        self._deltas = 0
        self.is_stopped = False

    async def begin(self, question: str, sender: str | None) -> None:
        """Shows the question to all."""
        await self._publish("answer.begin", "begin", {"question": question}, sender)

    async def write(self, pieces: AsyncIterator[str]) -> None:
        """Writes until the end of the pieces, or until the answer is stopped."""
        async for text in joined(pieces, WINDOW):
            if self.is_stopped:
                break
            await self._publish("answer.delta", str(self._deltas), {"index": self._deltas, "text": text})
            self._text += text
            self._deltas += 1
        await self.end("stopped" if self.is_stopped else "complete")

    async def end(self, reason: str, text: str | None = None) -> None:
        """Ends the answer. The whole text is in the last event, for those who do not have all deltas."""
        data = {"reason": reason, "text": self._text if text is None else text, "deltas": self._deltas}
        await self._publish("answer.end", "end", data)

    async def _publish(self, kind: str, name: str, data: dict[str, Any], sender: str | None = None) -> None:
        data = {"answer": self._answer, **data}
        await self._client.publish(self._channel, kind, data, id=f"{self._answer}-{name}", sender=sender, deadline=60)


class Desk:
    """Answers questions: one at a time in a conversation, and a bounded number in all."""

    def __init__(self, api: Api, tasks: asyncio.TaskGroup) -> None:
        self._api = api
        self._tasks = tasks
        self._places = asyncio.Semaphore(MAX_ANSWERS)
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._answers: dict[tuple[str, str], Answer] = {}

    def ask(self, conversation: str, answer: str, question: str, sender: str | None) -> None:
        """Begins to answer. The same answer twice is one."""
        if (conversation, answer) in self._answers:
            return
        self._waiting[conversation] += 1
        self._answers[conversation, answer] = Answer(self._api.client, conversation, answer)
        self._tasks.create_task(self._answer(conversation, answer, question, sender))

    def stop(self, conversation: str, answer: str) -> None:
        """Stops an answer, or one that has not begun."""
        if (found := self._answers.get((conversation, answer))) is not None:
            found.is_stopped = True

    async def _answer(self, conversation: str, name: str, question: str, sender: str | None) -> None:
        answer = self._answers[conversation, name]
        turn = self._turns.setdefault(conversation, asyncio.Lock())
        try:
            await answer.begin(question, sender)
            if self._waiting[conversation] > MAX_WAITING or len(self._answers) > MAX_QUESTIONS:
                await answer.end("failed", TOO_MANY)
                return
            async with turn, self._places:
                await answer.write(tokens(ANSWERS.get(question, UNKNOWN), self._api))
        except TidewireError as error:
            print(f"demo: answer {name} has no end: {error}", file=sys.stderr)
        finally:
            del self._answers[conversation, name]
            self._waiting[conversation] -= 1
            if not self._waiting[conversation]:
                del self._waiting[conversation], self._turns[conversation]


async def run(api: Api) -> None:
    """Answers until cancelled."""
    async with asyncio.TaskGroup() as tasks, api.client.channel(DESK, tail=TAIL, on_missed=_missed) as questions:
        desk = Desk(api, tasks)
        async for event in questions:
            data = event.data
            if time.time() - event.at / 1000 > STALE:
                continue
            if event.type == "ask.question":
                desk.ask(data["conversation"], data["answer"], data["question"], event.sender)
            else:
                desk.stop(data["conversation"], data["answer"])


def _missed(_: EventsMissedError) -> None:
    """Questions that the service has lost get no answer: the pages say so, and people ask again."""
