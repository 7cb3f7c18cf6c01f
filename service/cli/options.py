"""Arguments that several commands share, and what they are read into."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from service.settings import CONFIG, Settings, load_settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns; argparse has no public name for it."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104  # compared, not bound
"""What reaches a service that listens everywhere, with or without IPv6."""


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"settings file (default: ${CONFIG})")


def add_url(parser: argparse.ArgumentParser) -> None:
    """Adds --url."""
    parser.add_argument(
        "--url", help="where the service listens (default: where the settings say, http://127.0.0.1:8080)"
    )


def config_path(given: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The settings file: --config, else the environment's, else none."""
    found: Path | None = given.config
    return found or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)


def client_settings(given: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings as a client of the service needs them: nothing has to be complete.

    Raises SettingsFaults.
    """
    return load_settings(config_path(given, environ), {**environ, "TIDEWIRE_DEMO": "true"})


def service_url(given: argparse.Namespace) -> str:
    """Where the service is: --url, else where these settings would make it listen.

    Raises SettingsFaults.
    """
    if given.url:
        return str(given.url).rstrip("/")
    settings = client_settings(given)
    return url_of(settings, settings.port)


def reached(host: str) -> str:
    """The address by which a program on this machine reaches what listens on `host`."""
    return _LOOPBACK.get(host, host)


def url_of(settings: Settings, port: int) -> str:
    """How a program on this machine reaches a service that listens there."""
    host = reached(settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
