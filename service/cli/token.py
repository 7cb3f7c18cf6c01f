"""`tidewire token`: signs a token, for development and for tests of applications."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from tidewire import TokenSigner

from service.adapters.jwt.issuer import SUBSCRIPTION_SUFFIX
from service.cli import output
from service.cli.development import load_development
from service.cli.options import Commands, add_config, client_settings
from service.contract import duration
from service.core.identity import parse_grants
from service.protocol.unique_keys import reject_duplicate_keys
from service.settings import Settings

_USER = re.compile(r"[\x21-\x7e]{1,128}")
DEFAULT_TTL = 43_200.0
"""Seconds."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "token",
        help="sign a token",
        description="Prints a token, signed with auth.secret or with the development secret of this folder.",
    )
    add_claims(parser, required=True)
    parser.add_argument(
        "--subscription",
        action="store_true",
        help="sign a token for one subscribe (docs/protocol.md), which opens no connection",
    )
    add_config(parser)
    parser.set_defaults(run=run)


def add_claims(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds the arguments for the claims of a token."""
    parser.add_argument("--user", type=_user, required=required, metavar="USER", help="user of the token")
    parser.add_argument("--tenant", metavar="TENANT", help="tenant of the user (default: that of the service)")
    parser.add_argument(
        "--grant",
        type=_grant,
        action="append",
        default=[],
        metavar="PATTERN",
        help="grants all rights in channels, such as 'room:*'; repeatable",
    )
    parser.add_argument("--ttl", type=_ttl, default=DEFAULT_TTL, metavar="TIME", help="lifetime (default: 12h)")
    parser.add_argument("--info", type=_info, metavar="JSON", help="info that presence shows to others")


def run(args: argparse.Namespace) -> int:
    """Signs and prints the token."""
    suffix = SUBSCRIPTION_SUFFIX if args.subscription else ""
    settings = with_secret(client_settings(args))
    output.result(sign(settings, args.user, args.grant, args.ttl, args.tenant, args.info, audience_suffix=suffix))
    return 0


def with_secret(settings: Settings) -> Settings:
    """Returns the settings; without a secret, adds the development secret and prints a note."""
    if settings.auth.secret is not None:
        return settings
    found = load_development()
    new = ", generated now: only a service that starts in this folder from now on accepts it" if found.is_new else ""
    output.note(f"tidewire: signed with the development secret in {found.secret_file}{new}")
    return found.complete(settings)


def sign(
    settings: Settings,
    user: str,
    grants: Sequence[str],
    ttl: float,
    tenant: str | None = None,
    info: Any = None,
    *,
    audience_suffix: str = "",
) -> str:
    """Returns a token that a service with these settings accepts. The settings must have a secret."""
    assert settings.auth.secret is not None  # noqa: S101  # with_secret adds one
    auth = settings.auth
    assert auth.secret is not None  # noqa: S101  # with_secret adds one
    signer = TokenSigner(
        auth.secret.get_secret_value(), issuer=auth.issuer, audience=auth.audience + audience_suffix, ttl=ttl
    )
    return signer.token(user, grants=grants, tenant=tenant, info=info)


def _user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise argparse.ArgumentTypeError("a user is 1 to 128 visible ASCII characters")
    return text


def _grant(text: str) -> str:
    try:
        parse_grants([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _ttl(text: str) -> float:
    try:
        ttl = duration.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if ttl < 1:
        raise argparse.ArgumentTypeError("a token lasts at least 1s")
    return ttl


def _info(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
