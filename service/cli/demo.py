"""Demo mode: the service with a page at `/`, tokens for whoever asks on this machine, and a made-up backend beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import structlog

from service import app, process
from service.assets import client_folder, demo_folder
from service.cli import output
from service.cli.development import Development, development, needs_development
from service.cli.options import url_of
from service.cli.token import sign
from service.contract.model import Contract
from service.settings import Settings
from service.web import demo as page

BOT = "support-bot"
BOT_GRANTS = ("room:*",)
BOT_TTL = 30 * 86_400.0
"""The backend asks for no second token, so its only one outlives any demo."""
AGENT_TTL = 3_600.0
STOP = 5.0
"""Seconds that the backend gets to end by itself."""
SAMPLE = ("room:1", "chat.message", '{"text": "hello"}')
"""An event for a first try by hand; the demo's contract admits it."""

Announce = Callable[[int], None]
"""Told the public port."""

_log = structlog.get_logger("demo")
_OWN = ("TIDEWIRE_DEMO_SEED", "TIDEWIRE_DEMO_SPEED")


def _say_nothing(port: int) -> None:
    """For a demo with credentials of its own."""


def serve(settings: Settings, contract: Contract) -> int:
    """Runs it until SIGTERM or Ctrl-C."""
    announce: Announce = _say_nothing
    if needs_development(settings):
        found = development()
        settings = found.complete(settings)
        announce = partial(_warn, settings, found)
    routes = page.routes(demo_folder(), client_folder(), lambda user: agent_token(settings, user), reserved=(BOT,))
    return process.serve(app.Service(settings, contract, extra_routes=routes), companion(settings, announce))


def agent_token(settings: Settings, user: str) -> str:
    """A token for a made-up agent."""
    return sign(settings, user, BOT_GRANTS, AGENT_TTL, info={"name": user.replace("-", " ").title()})


def companion(settings: Settings, announce: Announce = _say_nothing) -> app.Companion:
    """The demo's backend: a process of its own that knows the service only by its public faces.

    `announce` is called first, once the service listens: what it says of a page is then true.
    """

    @asynccontextmanager
    async def beside(port: int) -> AsyncIterator[None]:
        announce(port)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(demo_folder() / "backend.py"), env=_environment(settings, port)
        )
        watch = asyncio.create_task(_watch(process))
        try:
            yield
        finally:
            watch.cancel()
            await _end(process)

    return beside


def _environment(settings: Settings, port: int) -> dict[str, str]:
    """The backend gets what a backend has, and none of the service's own settings."""
    key = settings.api.key
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEWIRE_") or name in _OWN}
    return kept | {
        "TIDEWIRE_URL": url_of(settings, port),
        "TIDEWIRE_API_KEY": key.get_secret_value() if key is not None else "",
        "TIDEWIRE_TOKEN": sign(settings, BOT, BOT_GRANTS, BOT_TTL, info={"name": "Support bot"}),
    }


async def _watch(process: asyncio.subprocess.Process) -> None:
    """Says so when the backend ends by itself: the page would only look strangely quiet."""
    status = await process.wait()
    _log.error("the demo's backend has ended", status=status)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _command() -> str:
    """How this command was called: an environment that is not activated has no `tidewire` on the path."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "tidewire" and shutil.which("tidewire") is None else "tidewire"


def _warn(settings: Settings, found: Development, port: int) -> None:
    output.note(_warning(settings, found, port))


def _warning(settings: Settings, found: Development, port: int) -> str:
    channel, kind, data = SAMPLE
    url = url_of(settings, port)
    key = settings.api.key
    made = key is not None and key.get_secret_value() == found.api_key
    secret = settings.auth.secret
    signs = secret is not None and secret.get_secret_value() == found.secret
    bearer = f"$(cat {found.api_key_file})" if made else "$KEY"
    lines = [
        "DEMO MODE: development credentials, not for production",
        "",
        f"page     {url}/",
        f"secret   {found.secret_file if signs else 'the one you set'}",
        "         signs tokens: whoever reads it can be anybody",
        f"API key  {found.api_key_file if made else 'the one you set'}",
        "",
        f"token    {_command()} token --user agent-1 --grant 'room:*'",
    ]
    width = max(map(len, lines))
    edge = "+" + "-" * (width + 2) + "+"
    box = "\n".join([edge, *(f"| {line:<{width}} |" for line in lines), edge])
    return (
        f"{box}\npublish by hand:\n"
        f"  curl -sS -H \"Authorization: Bearer {bearer}\" -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"type": "{kind}", "data": {data}}}\' {url}/api/v1/channels/{channel}/events\n'
    )
