"""`tidewire token`: signs a token, for trying things out and for tests of applications."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import jwt

from service.cli import output
from service.cli.development import development
from service.cli.options import Commands, add_config, client_settings
from service.contract import duration
from service.core.identity import parse_grants
from service.protocol.unique_keys import reject_duplicate_keys
from service.settings import Settings

_USER = re.compile(r"[\x21-\x7e]{1,128}")
DEFAULT_TTL = 43_200.0


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "token",
        help="sign a token",
        description="Prints a token signed with auth.secret, or else with this folder's development secret.",
    )
    add_claims(parser, required=True)
    add_config(parser)
    parser.set_defaults(run=run)


def add_claims(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds the arguments that say what the token claims."""
    parser.add_argument("--user", type=_user, required=required, metavar="USER", help="whom the token is for")
    parser.add_argument("--tenant", metavar="TENANT", help="the user's tenant (default: the service's)")
    parser.add_argument(
        "--grant",
        type=_grant,
        action="append",
        default=[],
        metavar="PATTERN",
        help="channels, such as 'room:*'; repeatable",
    )
    parser.add_argument(
        "--ttl", type=_ttl, default=DEFAULT_TTL, metavar="TIME", help="how long it is good (default: 12h)"
    )
    parser.add_argument("--info", type=_info, metavar="JSON", help="shown to others in presence")


def run(given: argparse.Namespace) -> int:
    """Does it."""
    output.result(
        sign(with_secret(client_settings(given)), given.user, given.grant, given.ttl, given.tenant, given.info)
    )
    return 0


def with_secret(settings: Settings) -> Settings:
    """The settings; without a secret of their own, with the development one. Says so on stderr."""
    if settings.auth.secret is not None:
        return settings
    found = development()
    fresh = ", made just now: only a service started in this folder from now on knows it" if found.fresh else ""
    output.note(f"tidewire: signed with the development secret in {found.secret_file}{fresh}")
    return found.complete(settings)


def sign(
    settings: Settings,
    user: str,
    grants: Sequence[str],
    ttl: float,
    tenant: str | None = None,
    info: Any = None,
) -> str:
    """A token that a service with these settings accepts; they have a secret."""
    assert settings.auth.secret is not None  # noqa: S101  # see with_secret
    now = time.time()
    claims: dict[str, Any] = {
        "iss": settings.auth.issuer,
        "aud": settings.auth.audience,
        "sub": user,
        "iat": int(now),
        "exp": int(now + ttl),
        "grants": list(grants),
    }
    claims |= {name: value for name, value in (("tenant", tenant), ("info", info)) if value is not None}
    return jwt.encode(claims, settings.auth.secret.get_secret_value(), algorithm="HS256")


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
        raise argparse.ArgumentTypeError("a token is good for at least 1s")
    return ttl


def _info(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
