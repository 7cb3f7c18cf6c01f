"""What the backend has to be told, from the environment. `stack.py` sets it on your machine."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field is the variable `CHAT_` and its name in capitals."""

    site_url: str
    """Where people find the chat; links in e-mails begin with it."""
    database_url: str
    tidewire_url: str
    """Tidewire, as this backend reaches it: `http://…`."""
    tidewire_socket: str
    """Tidewire, as browsers reach it: `ws://…/ws`."""
    tidewire_api_key: str
    token_secret: str
    """Signs the tokens with which browsers connect: `auth.secret` of Tidewire."""
    hook_secret: str
    """`whsec_…`: signs the questions of Tidewire."""
    webhook_secret: str
    """`whsec_…`: signs what Tidewire reports."""
    smtp_host: str
    smtp_port: int

    @classmethod
    def from_environment(cls) -> Settings:
        """Returns the settings. Raises SystemExit with the names of all variables that are missing."""
        names = {field: f"CHAT_{field.upper()}" for field in cls.__slots__}
        missing = [name for name in names.values() if not os.environ.get(name)]
        if missing:
            raise SystemExit(f"not set: {', '.join(missing)}")
        values = {field: os.environ[name] for field, name in names.items()}
        return cls(**{**values, "smtp_port": int(values["smtp_port"])})  # type: ignore[arg-type]  # all others are text
