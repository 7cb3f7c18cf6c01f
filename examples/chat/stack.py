"""Starts and ends the four programs of the example: PostgreSQL, a mail server that keeps all mails, Tidewire, the backend.

Everything that they write is in one folder. Each runs in a session of its own, so Ctrl+C reaches `run.py` alone, which ends them.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_TIMEOUT = 60.0
"""Seconds that each program may take to start."""
STOP_TIMEOUT = 20.0
"""Seconds until a program that does not end is killed."""


class StackError(Exception):
    """A program cannot be started, or has ended by itself; in words for who has typed the command."""


@dataclass
class Program:
    """A program that runs, and the file with what it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM

    def stop(self) -> None:
        """Ends it, and waits for that."""
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def fault(self) -> StackError:
        """Says that it has ended, with its last lines."""
        last = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        return StackError(f"{self.name} has ended (status {self.process.returncode}). The end of {self.log}:\n{last}")


@dataclass
class Stack:
    """The programs of one chat."""

    folder: Path
    port: int
    """Of the pages, and of the backend."""
    tidewire_port: int
    secrets: dict[str, str] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    smtp_port: int = 0
    ops_port: int = 0

    @property
    def url(self) -> str:
        """Where people open the chat."""
        return f"http://{HOST}:{self.port}"

    @property
    def tidewire_url(self) -> str:
        """Where the backend reaches Tidewire."""
        return f"http://{HOST}:{self.tidewire_port}"

    @property
    def database_url(self) -> str:
        """Where the backend reaches PostgreSQL: over a socket in the folder, so no port is needed."""
        return f"postgresql://chat@/postgres?host={self.folder / 'postgres'}"

    @property
    def mails(self) -> Path:
        """The folder with the mails that were sent, a file each."""
        return self.folder / "mails" / "new"

    def start(self) -> None:
        """Starts everything. Raises StackError if a program does not start."""
        for port in (self.port, self.tidewire_port):
            if not _is_free(port):
                raise StackError(f"port {port} is taken. Choose others with --port and --tidewire-port.")
        self.smtp_port, self.ops_port = free_port(), free_port()
        self._make_secrets()
        self._start_postgres()
        self.start_mail_server()
        self.start_tidewire()
        self.start_backend()

    def stop(self) -> None:
        """Ends everything, the newest program first."""
        for name in reversed(list(self.programs)):
            self.stop_program(name)

    def stop_program(self, name: str) -> None:
        """Ends one program."""
        self.programs.pop(name).stop()

    def check(self) -> None:
        """Raises StackError if a program has ended."""
        for program in self.programs.values():
            if program.process.poll() is not None:
                raise program.fault()

    def start_backend(self) -> None:
        """Starts the backend, with all that it has to know in its environment (backend/settings.py)."""
        command = [sys.executable, "-m", "uvicorn", "backend.app:create_app", "--factory", "--app-dir", str(HERE)]
        options = ["--host", HOST, "--port", str(self.port), "--no-access-log", "--timeout-graceful-shutdown", "5"]
        program = self._run(
            "backend",
            [*command, *options],
            environment={
                "CHAT_SITE_URL": self.url,
                "CHAT_DATABASE_URL": self.database_url,
                "CHAT_TIDEWIRE_URL": self.tidewire_url,
                "CHAT_TIDEWIRE_SOCKET": f"{self.tidewire_url.replace('http', 'ws', 1)}/ws",
                "CHAT_TIDEWIRE_API_KEY": self.secrets["api-key"],
                "CHAT_TOKEN_SECRET": self.secrets["token-secret"],
                "CHAT_HOOK_SECRET": self.secrets["hook-secret"],
                "CHAT_WEBHOOK_SECRET": self.secrets["webhook-secret"],
                "CHAT_SMTP_HOST": HOST,
                "CHAT_SMTP_PORT": str(self.smtp_port),
            },
        )
        self._wait(program, lambda: _answers(f"{self.url}/"))

    def _make_secrets(self) -> None:
        for name in ("token-secret", "api-key"):
            self.secrets[name] = secrets.token_urlsafe(48)
        for name in ("hook-secret", "webhook-secret"):
            self.secrets[name] = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        for name, value in self.secrets.items():
            (self.folder / name).touch(0o600)
            (self.folder / name).write_text(value + "\n", encoding="utf-8")

    def _start_postgres(self) -> None:
        programs = _postgres_programs()
        data = self.folder / "postgres"
        data.mkdir(0o700)
        owner = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            owner = "postgres"
            shutil.chown(data, owner, owner)
            self.folder.chmod(0o711)
        initialise = [
            str(programs / "initdb"),
            "-D",
            str(data / "data"),
            "-U",
            "chat",
            "-E",
            "UTF8",
            "--auth",
            "trust",
            "--no-sync",
        ]
        self._run("initdb", initialise, owner=owner).process.wait(START_TIMEOUT)
        if (ended := self.programs.pop("initdb")).process.returncode != 0:
            raise ended.fault()
        # Only over the socket, in a folder that only its owner may open.
        command = [str(programs / "postgres"), "-D", str(data / "data"), "-k", str(data), "-c", "listen_addresses="]
        program = self._run("postgres", command, owner=owner, stop_signal=signal.SIGINT)
        is_ready = [str(programs / "pg_isready"), "-q", "-h", str(data), "-U", "chat", "-d", "postgres"]
        self._wait(program, lambda: subprocess.run(is_ready, check=False).returncode == 0)  # noqa: S603  # ours

    def start_mail_server(self) -> None:
        """Starts the mail server. It writes mails into a folder, and passes none on."""
        keeper = ["-c", "aiosmtpd.handlers.Mailbox", str(self.folder / "mails")]
        command = [sys.executable, "-m", "aiosmtpd", "-n", "-l", f"{HOST}:{self.smtp_port}", *keeper]
        self._wait(self._run("mail", command), lambda: not _is_free(self.smtp_port))

    def start_tidewire(self) -> None:
        """Starts Tidewire, with tidewire.yaml and contract.yaml."""
        settings = self.folder / "tidewire.yaml"
        template = string.Template((HERE / "tidewire.yaml").read_text(encoding="utf-8"))
        settings.write_text(
            template.substitute(
                BACKEND=self.url,
                LOCALHOST=f"http://localhost:{self.port}",
                PORT=self.tidewire_port,
                OPS_PORT=self.ops_port,
                CONTRACT=json.dumps(str(HERE / "contract.yaml")),
                FOLDER=self.folder,
            ),
            encoding="utf-8",
        )
        environment = {
            "TIDEWIRE_AUTH__SECRET_FILE": str(self.folder / "token-secret"),
            "TIDEWIRE_API__KEY_FILE": str(self.folder / "api-key"),
        }
        command = [str(Path(sys.executable).with_name("tidewire")), "serve", "--config", str(settings)]
        program = self._run("tidewire", command, environment=environment)
        self._wait(program, lambda: _answers(f"http://{HOST}:{self.ops_port}/readyz"))

    def _run(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        owner: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> Program:
        """Starts a program. It gets the environment of this process, without settings of another Tidewire."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TIDEWIRE_")}
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603  # the commands are those of this file
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**inherited, **(environment or {})},
                user=owner,
                group=owner,
                extra_groups=[] if owner else None,
                start_new_session=True,
            )
        program = self.programs[name] = Program(name, process, log, stop_signal)
        return program

    def _wait(self, program: Program, is_ready: Callable[[], bool]) -> None:
        """Waits until a program has started."""
        deadline = time.monotonic() + START_TIMEOUT
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{program.name} has not started within {START_TIMEOUT:.0f} s; see {program.log}")
            time.sleep(0.05)


def free_port() -> int:
    """Returns a port that nobody uses."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) != 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # an address of this machine
            return True
    except (urllib.error.URLError, OSError):
        return False


def _postgres_programs() -> Path:
    """Returns the folder with `initdb` and `postgres`: the newest that is installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    if found is None:
        raise StackError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return Path(found).resolve().parent
