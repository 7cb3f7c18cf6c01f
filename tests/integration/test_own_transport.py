"""The transport that is ours, attacked: who is held back and who must not be, and what a fault of our own costs."""

from __future__ import annotations

from typing import Any

from tests.harness import Running, token
from tests.integration.raw import Raw, text, upgraded


async def parts(raw: Raw) -> list[dict[str, Any]]:
    """The messages of the next frame."""
    message: Any = await raw.message()
    return message if isinstance(message, list) else [message]


async def test_who_sends_much_behind_hello_is_read_further(server: Running) -> None:
    async with upgraded(server, None) as raw:
        raw.write(text(type="hello", token=token("ann")) + b"".join(text(type="ping", id=str(n)) for n in range(20)))
        got: list[str] = []
        while "19" not in got:
            got += [part["id"] for part in await parts(raw) if part["type"] != "welcome"]
        raw.write(text(type="ping", id="20"))
        got += [part["id"] for part in await parts(raw)]
        assert got == [str(number) for number in range(21)]
