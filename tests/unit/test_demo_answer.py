"""The streaming answer's simulation: tokens are joined, and every event fits the contract."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from demo.simulations.answer import ANSWERS, joined
from service.assets import demo_folder
from service.contract.load import load


async def pieces(*parts: str) -> AsyncIterator[str]:
    for part in parts:
        yield part


async def test_tokens_of_one_window_are_one_delta() -> None:
    assert [text async for text in joined(pieces("It ", "is ", "one."), 0.0)] == ["It is one."]


async def test_tokens_of_later_windows_follow_in_order() -> None:
    more = asyncio.Event()

    async def two() -> AsyncIterator[str]:
        yield "first "
        await more.wait()
        yield "second "
        yield "third"

    texts: list[str] = []
    async for text in joined(two(), 0.0):
        texts.append(text)
        more.set()
    assert texts == ["first ", "second third"]


async def test_failed_model_fails_the_reader_after_the_last_delta() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "so far"
        raise RuntimeError("the model has failed")

    deltas = joined(broken(), 0.0)
    assert await anext(deltas) == "so far"
    with pytest.raises(RuntimeError, match="the model has failed"):
        await anext(deltas)


def test_suggested_questions_have_answers_that_fit_the_contract() -> None:
    page = (demo_folder() / "pages" / "answer" / "index.html").read_text(encoding="utf-8")
    suggestions = re.search(r'id="suggestions".*?</div>', page, re.DOTALL)
    assert suggestions is not None
    assert re.findall(r"<button[^>]*>(.*?)</button>", suggestions[0]) == list(ANSWERS)
    schema = msgspec.json.decode((demo_folder() / "schemas" / "answer.end.json").read_bytes())
    assert max(map(len, ANSWERS.values())) <= schema["properties"]["text"]["maxLength"]
    assert load(demo_folder() / "contract.yaml").channels
