"""Demo mode: the service with the demos at `/`, tokens for anybody on this machine, and simulated backends."""

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
from service.cli.development import Development, load_development, needs_development
from service.cli.inspector import routes as inspector
from service.cli.inspector.lab import Labs
from service.cli.options import url_of
from service.cli.token import sign
from service.contract.load import load
from service.contract.model import Contract
from service.settings import Settings
from service.web import demo as page

BOT = "support-bot"
BOT_GRANTS = ("room:*", "ask:*")
BOT_TTL = 30 * 86_400.0
"""Seconds. The backend never renews its token, so the token must outlive any demo."""
AGENT_TTL = 3_600.0
STOP_TIMEOUT = 5.0
"""Seconds that the backend gets to end after SIGTERM; then it is killed."""
SAMPLE = ("room:1", "chat.message", '{"text": "hello"}')
"""An event to publish by hand; the demo's contract accepts it."""

Announce = Callable[[int], None]
"""Gets the public port."""

_log = structlog.get_logger("demo")
_BACKEND_VARIABLES = ("TIDEWIRE_DEMO_SEED", "TIDEWIRE_DEMO_SPEED")


def _no_announcement(port: int) -> None:
    """For a demo with configured credentials."""


def serve(settings: Settings, contract: Contract) -> int:
    """Runs the demo until SIGTERM or Ctrl-C."""
    announce: Announce = _no_announcement
    if needs_development(settings):
        found = load_development()
        settings = found.complete(settings)
        announce = partial(_warn, settings, found)
    labs = Labs(lambda: load(demo_folder() / "contract.yaml"))
    pages = page.routes(demo_folder(), client_folder(), lambda user: agent_token(settings, user), reserved_users=(BOT,))
    service = app.Service(settings, contract, extra_routes=[*inspector.routes(labs), *pages])
    return process.serve(service, _with_labs(labs, companion(settings, announce)))


def _with_labs(labs: Labs, companion: app.Companion) -> app.Companion:
    """Ends the labs of the inspector before the service drains."""

    @asynccontextmanager
    async def beside(port: int) -> AsyncIterator[None]:
        async with companion(port):
            try:
                yield
            finally:
                await labs.close()

    return beside


def agent_token(settings: Settings, user: str) -> str:
    """Returns a token for a simulated agent."""
    return sign(settings, user, BOT_GRANTS, AGENT_TTL, info={"name": user.replace("-", " ").title()})


def companion(settings: Settings, announce: Announce = _no_announcement) -> app.Companion:
    """The demo's backend: a separate process that uses only the public interfaces of the service.

    `announce` is called first, when the service listens.
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
    """Returns the environment of the backend: its credentials, and none of the service's settings."""
    key = settings.api.key
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TIDEWIRE_") or name in _BACKEND_VARIABLES
    }
    return inherited | {
        "TIDEWIRE_URL": url_of(settings, port),
        "TIDEWIRE_API_KEY": key.get_secret_value() if key is not None else "",
        "TIDEWIRE_TOKEN": sign(settings, BOT, BOT_GRANTS, BOT_TTL, info={"name": "Support bot"}),
    }


async def _watch(process: asyncio.subprocess.Process) -> None:
    """Logs that the backend has ended unexpectedly. The page does not show it."""
    status = await process.wait()
    _log.error("demo_backend_ended", status=status)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _command() -> str:
    """Returns how this command was called: a virtual environment that is not activated is not on PATH."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "tidewire" and shutil.which("tidewire") is None else "tidewire"


def _warn(settings: Settings, found: Development, port: int) -> None:
    output.note(format_warning(settings, found, port))


def format_warning(settings: Settings, found: Development, port: int) -> str:
    """Returns the warning that is shown when the demo starts, with the commands to try."""
    channel, kind, data = SAMPLE
    url = url_of(settings, port)
    key = settings.api.key
    key_is_generated = key is not None and key.get_secret_value() == found.api_key
    secret = settings.auth.secret
    secret_is_generated = secret is not None and secret.get_secret_value() == found.secret
    bearer = f"$(cat {found.api_key_file})" if key_is_generated else "$KEY"
    lines = [
        "DEMO MODE: development credentials, not for production",
        "",
        f"page     {url}/",
        f"secret   {found.secret_file if secret_is_generated else 'the one you set'}",
        "         signs tokens: its reader can impersonate any user",
        f"API key  {found.api_key_file if key_is_generated else 'the one you set'}",
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
