"""The examples of the README, run in their order against a real service."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.harness import API_KEY, DEADLINE, SECRET, Running

from tidewire import Tidewire, TokenSigner
from tidewire.testing import FakeTidewire, call_failed

README = Path(__file__).parents[1] / "README.md"


class _Shown(Exception):  # noqa: N818  # ends an example that follows a channel for ever
    """The example has printed an event."""


def _show(*values: Any) -> None:
    if values[0] == "chat.message":
        raise _Shown


def _ship_order(number: int, client: Tidewire) -> None:
    client.publish(f"orders:{number}", "order.state", {"state": "shipped"})


def shop() -> FakeTidewire:
    """A backend that answers calls; this server's contract has none."""
    fake = FakeTidewire()

    def sold_out(data: Any) -> Any:
        raise call_failed("sold_out", data={"left": data["count"] - 3})

    fake.on_call("order.quote", sold_out)
    return fake


@asynccontextmanager
async def publishing(server: Running) -> AsyncIterator[None]:
    """Publishes again and again, until the block ends."""

    async def publish() -> None:
        while True:
            await server.publish("room:42", {"type": "chat.message", "data": {"text": "hi"}})
            await asyncio.sleep(0.05)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_example_of_the_readme_runs(server: Running) -> None:
    signer = TokenSigner(SECRET)
    namespace: dict[str, Any] = {"url": server.url, "secret": SECRET, "signer": signer, "users": ["ann", "ben"]}
    namespace |= {"print": _show, "ship_order": _ship_order}
    shown = 0
    with Tidewire(server.url, api_key=API_KEY) as client:
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
            text = block.replace("https://events.example.com", server.url).replace(
                "the API key of your backend", API_KEY
            )
            calls = shop() if "client.call(" in text else None
            namespace["client"] = client if calls is None else calls.async_client()
            code = compile(text, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            try:
                async with publishing(server), asyncio.timeout(DEADLINE):
                    if "async " in text or "await " in text:
                        running = eval(code, namespace)
                        assert inspect.iscoroutine(running)
                        await running
                    else:
                        await asyncio.to_thread(eval, code, namespace)
            except _Shown:
                shown += 1
            for name in [name for name in namespace if name.startswith("test_")]:
                namespace.pop(name)()
            if (made := namespace["client"]) is not client and isinstance(made, Tidewire):
                await asyncio.to_thread(made.close)
            if calls is not None:
                await made.close()
                assert [call.name for call in calls.calls] == ["order.quote"]
    assert shown == 2, "the examples that follow a channel, for asyncio and for threads"
