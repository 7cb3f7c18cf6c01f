"""Credentials for development: made on this machine at first use, kept in ./.tidewire, readable by their owner alone.

There is no built-in secret: one that everybody knows would sooner or later guard something real.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from service.contract.document import Fault, Faults
from service.settings import Settings
from service.settings.model import MIN_KEY, MIN_SECRET_BYTES

FOLDER = Path(".tidewire")
_SECRET, _API_KEY = "secret", "api-key"  # names of files


@dataclass(frozen=True, slots=True)
class Development:
    """What signs tokens, and what opens the backend API, on this machine."""

    folder: Path
    secret: str = field(repr=False)
    api_key: str = field(repr=False)
    fresh: bool = field(default=False, compare=False)
    """Whether the secret was made just now, so that no running service knows it."""

    @property
    def secret_file(self) -> Path:
        """Where the secret is kept."""
        return self.folder / _SECRET

    @property
    def api_key_file(self) -> Path:
        """Where the API key is kept."""
        return self.folder / _API_KEY

    def complete(self, settings: Settings) -> Settings:
        """The settings, with these credentials where they have none of their own."""
        auth, api = settings.auth, settings.api
        if auth.secret is None:
            auth = auth.model_copy(update={"secret": SecretStr(self.secret)})
        if api.key is None:
            api = api.model_copy(update={"key": SecretStr(self.api_key)})
        return settings.model_copy(update={"auth": auth, "api": api})


def needs_development(settings: Settings) -> bool:
    """Whether the settings leave something to development credentials."""
    return settings.auth.secret is None or settings.api.key is None


def development(folder: Path = FOLDER) -> Development:
    """Reads the credentials, or makes them. Two processes that do so at once get the same ones.

    Raises Faults where they cannot be kept: in an image, say, or in another user's folder; and where they are no credentials.
    """
    try:
        found = _development(folder)
    except OSError as error:
        kept = f"development credentials are kept in the folder {error.filename or folder}: {error.strerror}"
        remedy = "start it where you may write, or set auth.secret and api.key"
        raise Faults([Fault("settings", None, f"{kept}; {remedy}")]) from None
    short = [
        Fault(str(file), None, f"is shorter than {least} bytes: remove it, and a new one is made")
        for file, text, least in (
            (found.secret_file, found.secret, MIN_SECRET_BYTES),
            (found.api_key_file, found.api_key, MIN_KEY),
        )
        if len(text.encode()) < least
    ]
    if short:
        raise Faults(short)
    return found


def _development(folder: Path) -> Development:
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    _keep(folder / ".gitignore", lambda: "*\n")
    fresh = not (folder / _SECRET).exists()
    secret = _keep(folder / _SECRET, lambda: secrets.token_urlsafe(48))
    api_key = _keep(folder / _API_KEY, lambda: secrets.token_urlsafe(32))
    return Development(folder, secret, api_key, fresh)


def kept_api_key(folder: Path = FOLDER) -> str | None:
    """The development API key, if there is one."""
    with suppress(OSError):
        return (folder / _API_KEY).read_text().strip()
    return None


def _keep(file: Path, make: Callable[[], str]) -> str:
    """The file's content, which `make` gives where there is none."""
    if not file.exists():
        fresh = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(make())
        with suppress(FileExistsError):  # somebody was faster: theirs counts
            os.link(fresh, file)  # whole or not at all
        fresh.unlink()
    file.chmod(0o600)
    return file.read_text().strip()
