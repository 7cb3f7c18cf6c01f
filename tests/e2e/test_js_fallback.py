"""The JavaScript client behind nginx that passes no upgrades, and behind one that also buffers streams."""

from __future__ import annotations

import asyncio
import os
from grp import getgrgid
from pwd import getpwuid

import pytest

from tests.e2e.programs import WHOLE, program
from tests.stores.process import HOST, MissingProgramError, Server
from tests.support.harness import serving
from tests.support.js_client import js_client

_CONFIGURATION = """\
daemon off;
user {user} {group};
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{origin};
      {buffering}
    }}
  }}
}}
"""
_BUFFERING = {"stream": "", "poll": "proxy_ignore_headers X-Accel-Buffering;"}
"""nginx as installed buffers, unless the service says no; and an nginx that does not listen."""


class PlainNginx(Server):
    """nginx as installed: it drops the headers of an upgrade."""

    def __init__(self, origin: int, buffering: str) -> None:
        super().__init__("nginx")
        self._origin = origin
        self._buffering = buffering

    def _prepare(self) -> None:
        user, group = getpwuid(os.getuid()).pw_name, getgrgid(os.getgid()).gr_name  # else root's worker becomes nobody
        text = _CONFIGURATION.format(
            folder=self.folder, port=self.port, origin=self._origin, buffering=self._buffering, user=user, group=group
        )
        (self.folder / "nginx.conf").write_text(text)

    def _command_line(self) -> list[str]:
        folder = self.folder
        return [str(program("nginx")), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.transport.abort()
        return True


@pytest.mark.parametrize("transport", ["stream", "poll"])
async def test_client_behind_nginx_uses_what_passes(transport: str) -> None:
    try:
        program("nginx")
    except MissingProgramError as error:
        (pytest.fail if WHOLE else pytest.skip)(str(error))
    async with (
        serving() as server,
        PlainNginx(int(server.url.rpartition(":")[2]), _BUFFERING[transport]) as nginx,
        js_client(f"ws://{HOST}:{nginx.port}/ws") as client,
    ):
        client.start("connect")
        await client.call("channel", channel="room:1")
        assert client.states[-1] == ("ready", transport)
        for number in range(1, 6):
            await client.call("publish", channel="room:1", type="chat.message", data={"text": str(number)})
        await client.until(lambda: [line["offset"] for line in client.all("event")] == [1, 2, 3, 4, 5])
