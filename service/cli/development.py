"""Development credentials: generated at first use, stored in ./.tidewire, readable only by their owner.

There is no built-in secret: a known secret would sooner or later protect a real service.
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
    """The secret that signs tokens, and the key of the backend API, on this machine."""

    folder: Path
    secret: str = field(repr=False)
    api_key: str = field(repr=False)
    is_new: bool = field(default=False, compare=False)
    """Whether the secret was generated just now, so that no running service has it."""

    @property
    def secret_file(self) -> Path:
        """The file of the secret."""
        return self.folder / _SECRET

    @property
    def api_key_file(self) -> Path:
        """The file of the API key."""
        return self.folder / _API_KEY

    def complete(self, settings: Settings) -> Settings:
        """Returns the settings, with these credentials where they have none."""
        auth, api = settings.auth, settings.api
        if auth.secret is None:
            auth = auth.model_copy(update={"secret": SecretStr(self.secret)})
        if api.key is None:
            api = api.model_copy(update={"key": SecretStr(self.api_key)})
        return settings.model_copy(update={"auth": auth, "api": api})


def needs_development(settings: Settings) -> bool:
    """Whether the settings lack a secret or an API key."""
    return settings.auth.secret is None or settings.api.key is None


def load_development(folder: Path = FOLDER) -> Development:
    """Loads the credentials, or generates them. Processes that start together get the same ones.

    Raises Faults if the folder cannot be written, as in an image, or if the files hold no valid credentials.
    """
    try:
        found = _load(folder)
    except OSError as error:
        kept = f"development credentials are kept in the folder {error.filename or folder}: {error.strerror}"
        remedy = "start it in a folder that you may write to, or set auth.secret and api.key"
        raise Faults([Fault("settings", None, f"{kept}; {remedy}")]) from None
    short = [
        Fault(str(file), None, f"is shorter than {min_bytes} bytes: remove it, and a new one is generated")
        for file, text, min_bytes in (
            (found.secret_file, found.secret, MIN_SECRET_BYTES),
            (found.api_key_file, found.api_key, MIN_KEY),
        )
        if len(text.encode()) < min_bytes
    ]
    if short:
        raise Faults(short)
    return found


def _load(folder: Path) -> Development:
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    _read_or_create(folder / ".gitignore", lambda: "*\n")
    is_new = not (folder / _SECRET).exists()
    secret = _read_or_create(folder / _SECRET, lambda: secrets.token_urlsafe(48))
    api_key = _read_or_create(folder / _API_KEY, lambda: secrets.token_urlsafe(32))
    return Development(folder, secret, api_key, is_new)


def stored_api_key(folder: Path = FOLDER) -> str | None:
    """Returns the development API key, if it exists."""
    with suppress(OSError):
        return (folder / _API_KEY).read_text().strip()
    return None


def _read_or_create(file: Path, generate: Callable[[], str]) -> str:
    """Returns the content of the file; creates it with `generate` where it is missing."""
    if not file.exists():
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(generate())
        with suppress(FileExistsError):  # another process was faster: its file is used
            os.link(temporary, file)  # complete or not at all
        temporary.unlink()
    file.chmod(0o600)
    return file.read_text().strip()
