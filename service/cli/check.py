"""`tidewire check`: reports every fault of the settings and the contract. `serve` does the same check."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from service.assets import demo_folder
from service.cli import output
from service.cli.files import file_faults
from service.cli.options import Commands, add_config, config_path
from service.contract.document import Fault, Faults
from service.contract.load import ContractFaults, load
from service.contract.model import Contract
from service.core.channel import ChannelKey
from service.core.event import Event
from service.settings import Settings, SettingsFaults, load_settings

CONNECT_TIMEOUT = 10.0
"""Seconds that `--connect` waits for the broker."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "check",
        help="check settings and contract; report every fault",
        description="Checks settings and contract. With a contract on the command line, the settings may be incomplete.",
    )
    parser.add_argument("contract_file", nargs="?", type=Path, metavar="CONTRACT", help="the contract to check")
    parser.add_argument("--contract", type=Path, metavar="FILE", help="the same, as an option")
    parser.add_argument("--connect", action="store_true", help="also connect to the broker, as serve does")
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks. Raises Faults, which `main` prints, one a line."""
    named = args.contract or args.contract_file
    # A contract can be checked without secrets, such as in the CI of its own repository.
    environ = {**os.environ, "TIDEWIRE_DEMO": "true"} if named else os.environ
    settings, contract = load_all(config_path(args), environ, named)
    if args.connect:
        asyncio.run(_connect(settings))
    channels, types = len(contract.channels), len(contract.event_types)
    output.result(
        f"{named or contract_path(settings)}: good: {_count(channels, 'channel')}, {_count(types, 'event type')}, "
        f"hash {contract.hash}"
    )
    return 0


def load_all(
    config: Path | None, environ: Mapping[str, str], contract: Path | None = None
) -> tuple[Settings, Contract]:
    """Loads the settings and the contract: the one given here, else the one in the settings.

    Raises Faults with every fault of both.
    """
    faults: list[Fault] = []
    try:
        settings = load_settings(config, environ)
    except SettingsFaults as found:
        faults.extend(found.faults)
        settings = found.usable
    faults.extend(file_faults(settings))
    path = contract or contract_path(settings)
    try:
        loaded = load(path) if path is not None else None
    except ContractFaults as found:
        faults.extend(found.faults)
        loaded = None
    if loaded is not None and contract is None:  # one that is checked alone may lack the settings
        named = {endpoint.name for endpoint in settings.hooks.endpoints}
        faults.extend(fault for name, fault in loaded.endpoints.items() if name not in named)
        named = {endpoint.name for endpoint in settings.webhooks.endpoints}
        faults.extend(fault for name, fault in loaded.webhook_endpoints.items() if name not in named)
    if faults or loaded is None:
        raise Faults(faults)
    return settings, loaded


async def _connect(settings: Settings) -> None:
    """Connects to the broker. Raises Faults if that fails."""
    # Imported only now: without this option, nothing of the service is needed.
    from service import app
    from service.adapters.clock import SystemClock
    from service.errors import ServiceError
    from service.realtime.cluster.store_clock import StoreClock
    from service.telemetry import log
    from service.telemetry.metrics import Metrics

    log.configure("error", stream=io.StringIO())  # each attempt is logged; the last reason is reported below
    timeout = min(settings.broker.unready_after, CONNECT_TIMEOUT)
    impatient = settings.model_copy(update={"broker": settings.broker.model_copy(update={"unready_after": timeout})})
    clock, metrics = SystemClock(), Metrics()
    broker = app.make_broker(impatient, clock, StoreClock(clock, metrics), metrics)
    try:
        await broker.start(_NoSubscribers())
    except ServiceError as error:
        raise Faults([Fault("broker.url", None, error.message)]) from None
    finally:
        await broker.close()


class _NoSubscribers:
    """Ignores events: there are no subscriptions."""

    def deliver(self, event: Event) -> None:
        """Does nothing."""

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Does nothing."""


def contract_path(settings: Settings) -> Path | None:
    """Returns the contract file; in demo mode the demo's, unless the settings name one."""
    return settings.contract or (demo_folder() / "contract.yaml" if settings.demo else None)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
