"""Arguments that several commands share, and the settings that they select."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from service.contract import duration
from service.settings import CONFIG, Settings, load_settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns; argparse has no public name for it."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104  # compared, not bound
"""The address that reaches a service which listens on all addresses."""


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"settings file (default: ${CONFIG})")


def add_url(parser: argparse.ArgumentParser) -> None:
    """Adds --url."""
    parser.add_argument("--url", help="URL of the service (default: from the settings, http://127.0.0.1:8080)")


def past(text: str) -> float:
    """Reads an argument such as `10m`: seconds before now."""
    try:
        return duration.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def config_path(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the settings file: --config, else the variable TIDEWIRE_CONFIG, else None."""
    path: Path | None = args.config
    return path or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)


def client_settings(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Loads the settings for a client of the service: they may be incomplete.

    Raises SettingsFaults.
    """
    return load_settings(config_path(args, environ), {**environ, "TIDEWIRE_DEMO": "true"})


def service_url(args: argparse.Namespace) -> str:
    """Returns the URL of the service: --url, else the address in the settings.

    Raises SettingsFaults.
    """
    if args.url:
        return str(args.url).rstrip("/")
    settings = client_settings(args)
    return url_of(settings, settings.port)


def local_address(host: str) -> str:
    """Returns the address at which this machine reaches a listener on `host`."""
    return _LOOPBACK.get(host, host)


def url_of(settings: Settings, port: int) -> str:
    """Returns the URL at which this machine reaches the service."""
    host = local_address(settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
