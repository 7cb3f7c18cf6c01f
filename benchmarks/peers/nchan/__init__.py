"""nginx with the module Nchan."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.peers.packages import apt_install
from benchmarks.peers.peer import Command, Peer

_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


class Nchan(Peer):
    """One worker; WebSockets publish and subscribe; no history."""

    name = "nchan"
    title = "Nchan"

    def available(self) -> str | None:
        """Needs nginx and the module."""
        if shutil.which("nginx") and _MODULE.exists():
            return None
        return "needs nginx with Nchan (Debian: apt-get install nginx-light libnginx-mod-nchan)"

    def install(self) -> None:
        """Installs with apt."""
        if self.available() is not None:
            apt_install("nginx-light", "libnginx-mod-nchan")

    def version(self) -> str:
        """Returns the versions of Debian's packages."""
        query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}, ", "libnginx-mod-nchan", "nginx-light"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.rstrip(", ")

    def command(self, case: Case, port: int, folder: Path) -> Command:
        """Uses its own configuration, not the system's."""
        template = (Path(__file__).parent / "nginx.conf").read_text()
        values = {
            "MODULE": str(_MODULE),
            "PORT": str(port),
            "PING": f"{max(1, round(case.ping))}",
            "FOLDER": str(folder),
        }
        for name, value in values.items():
            template = template.replace(f"@{name}@", value)
        (folder / "nginx.conf").write_text(template)
        return Command(("nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "log"))

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        """Delivers the sent text unchanged."""
        return [("path", "/room/%r"), ("message", case.data())]
