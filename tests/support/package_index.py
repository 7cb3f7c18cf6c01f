"""A Python package index (PEP 503) on loopback, with generated wheels, to test which versions an installer chooses."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

ANYWHERE = "py3-none-any"


def normalised(name: str) -> str:
    """The normalized name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(slots=True)
class _File:
    content: bytes
    metadata: bytes
    yanked: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(slots=True)
class PackageIndex:
    """Packages by name. An added package is available at the next request."""

    url: str = ""
    """The URL of the simple API, while it is served."""
    requests: list[str] = field(default_factory=list)
    """The requested paths."""
    _files: dict[str, dict[str, _File]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        version: str,
        *,
        requires: Sequence[str] = (),
        extras: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        tag: str = ANYWHERE,
    ) -> str:
        """Adds a wheel with these files, and returns its SHA-256."""
        stem = f"{normalised(name).replace('-', '_')}-{version}"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in requires]
        metadata = "\n".join([*lines, ""]).encode()
        content = _wheel(stem, metadata, {path.format(stem=stem): text for path, text in (files or {}).items()}, tag)
        file = _File(content, metadata)
        self._files.setdefault(normalised(name), {})[f"{stem}-{tag}.whl"] = file
        return file.sha256

    def yank(self, name: str) -> None:
        """Marks all present files of a package as yanked (PEP 592)."""
        for file in self._files[normalised(name)].values():
            file.yanked = True

    def names(self) -> list[str]:
        """The names of all packages."""
        return sorted(self._files)

    def _answer(self, path: str) -> bytes | None:
        folder, _, name = path.strip("/").partition("/")
        if folder == "simple" and name in self._files:
            return _page(self._files[name]).encode()
        if folder != "files":
            return None
        for files in self._files.values():
            if (file := files.get(name.removesuffix(".metadata"))) is not None:
                return file.metadata if name.endswith(".metadata") else file.content
        return None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serves the index for the length of the block."""
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                index.requests.append(self.path)
                content = index._answer(self.path)
                self.send_response(HTTPStatus.NOT_FOUND if content is None else HTTPStatus.OK)
                self.send_header("Content-Type", "text/html" if "/simple/" in self.path else "application/octet-stream")
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _page(files: Mapping[str, _File]) -> str:
    links = [
        f'<a href="/files/{name}#sha256={file.sha256}" data-core-metadata="true"'
        f"{' data-yanked=withdrawn' if file.yanked else ''}>{name}</a>"
        for name, file in files.items()
    ]
    return "<!DOCTYPE html><html><body>" + "\n".join(links) + "</body></html>"


def _wheel(stem: str, metadata: bytes, files: Mapping[str, str], tag: str) -> bytes:
    everything = {path: text.encode() for path, text in files.items()}
    everything[f"{stem}.dist-info/METADATA"] = metadata
    everything[f"{stem}.dist-info/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    record = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in everything.items()]
    everything[f"{stem}.dist-info/RECORD"] = "\n".join([*record, f"{stem}.dist-info/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in everything.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
