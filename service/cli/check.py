"""`tidewire check`: are the settings and the contract good? `serve` asks the same."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.adapters.jwks import parse_keys
from service.assets import demo_folder
from service.cli import output
from service.cli.options import Commands, add_config, config_path
from service.contract.document import Fault, Faults
from service.contract.load import ContractFaults, load
from service.contract.model import Contract
from service.settings import Settings, SettingsFaults, load_settings


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "check",
        help="check settings and contract; tell every fault",
        description="Checks settings and contract. With a contract named here, the settings need not be complete.",
    )
    parser.add_argument("contract_file", nargs="?", type=Path, metavar="CONTRACT", help="the contract to check")
    parser.add_argument("--contract", type=Path, metavar="FILE", help="the same")
    add_config(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Does it. Faults go up: `main` prints them, one a line."""
    named = given.contract or given.contract_file
    # A contract can be checked where no secret is, such as in its own repository's CI.
    environ = {**os.environ, "TIDEWIRE_DEMO": "true"} if named else os.environ
    settings, contract = everything(config_path(given), environ, named)
    channels, types = len(contract.channels), len(contract.event_types)
    output.result(
        f"{named or contract_path(settings)}: good: {_count(channels, 'channel')}, {_count(types, 'event type')}"
    )
    return 0


def everything(
    config: Path | None, environ: Mapping[str, str], contract: Path | None = None
) -> tuple[Settings, Contract]:
    """Reads settings and contract (the one named here, else the one in the settings).

    Raises Faults with every fault of both.
    """
    faults: list[Fault] = []
    try:
        settings = load_settings(config, environ)
    except SettingsFaults as found:
        faults.extend(found.faults)
        settings = found.usable
    faults.extend(_key_faults(settings))
    path = contract or contract_path(settings)
    try:
        loaded = load(path) if path is not None else None
    except ContractFaults as found:
        faults.extend(found.faults)
        loaded = None
    if faults or loaded is None:
        raise Faults(faults)
    return settings, loaded


def _key_faults(settings: Settings) -> Iterator[Fault]:
    """Key files that no token could be checked with; without this the first user would find out."""
    for issuer in settings.auth.issuers:
        if issuer.jwks_file is None or issuer.algorithm == "HS256":
            continue
        try:
            usable = len(parse_keys(issuer.jwks_file.read_bytes(), issuer.algorithm))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            yield Fault(str(issuer.jwks_file), None, f"the keys of {issuer.issuer} cannot be read: {reason}")
        else:
            if not usable:
                yield Fault(str(issuer.jwks_file), None, f"holds no {issuer.algorithm} key for {issuer.issuer}")


def contract_path(settings: Settings) -> Path | None:
    """The contract's file; in demo mode the demo's, unless the settings name one."""
    return settings.contract or (demo_folder() / "contract.yaml" if settings.demo else None)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
