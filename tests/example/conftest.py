"""The programs of examples/chat, started once for all tests. Each test has users and rooms of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.chat.stack import Stack
from tests.example.people import Chat
from tests.stores.process import free_port


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="chat-test-"))
    stack = Stack(folder, free_port(), free_port())
    try:
        stack.start()
        yield stack
        stack.check()
        for log, sign in (("backend.log", "ERROR"), ("tidewire.log", '"level": "error"')):
            faults = [line for line in (folder / log).read_text().splitlines() if sign in line]
            assert not faults, faults
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def chat(stack: Stack) -> Chat:
    return Chat(stack)
