"""Answers that are remembered for as long as who gave them says. Pure: the clock comes in as a function.

answers = AnswerMemory(10_000, clock.monotonic, on_evict=lambda: None)
answers.remember("question", "answer", ttl=60.0)
answers.recall("question")  # "answer", for 60 s
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from service.core.hooks import MAX_TTL

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Remembered(NamedTuple, Generic[V]):
    answer: V
    until: float


class AnswerMemory(Generic[K, V]):
    """Answers by question. One more than `max_answers` forgets the one that was used longest ago."""

    def __init__(self, max_answers: int, monotonic: Callable[[], float], on_evict: Callable[[], None]) -> None:
        """`on_evict` is called when an answer is forgotten that still counts."""
        self._max_answers = max_answers
        self._monotonic = monotonic
        self._on_evict = on_evict
        self._answers: OrderedDict[K, _Remembered[V]] = OrderedDict()

    def recall(self, question: K) -> V | None:
        """Returns the answer; None if there is none that still counts."""
        found = self._answers.get(question)
        if found is None:
            return None
        if self._monotonic() >= found.until:
            del self._answers[question]
            return None
        self._answers.move_to_end(question)
        return found.answer

    def remember(self, question: K, answer: V, ttl: float) -> None:
        """Remembers an answer for `ttl` seconds, at most MAX_TTL. Does nothing for 0."""
        if ttl <= 0 or not self._max_answers:
            return
        self._answers[question] = _Remembered(answer, self._monotonic() + min(ttl, MAX_TTL))
        self._answers.move_to_end(question)
        if len(self._answers) > self._max_answers:
            _, oldest = self._answers.popitem(last=False)
            if self._monotonic() < oldest.until:
                self._on_evict()

    def forget(self, question: K) -> None:
        """Forgets an answer, if there is one."""
        self._answers.pop(question, None)

    def __len__(self) -> int:
        return len(self._answers)
