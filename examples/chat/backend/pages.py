"""The pages of the chat: what `npm run build` has made of `web/`."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from .services import Shared

DIST = Path(__file__).parents[1] / "web" / "dist"

router = APIRouter()


@router.get("/")
async def page(services: Shared) -> FileResponse:
    """The one page. Its scripts come from here, and it talks to this backend and to Tidewire alone."""
    socket = services.settings.tidewire_socket.removesuffix("/ws")
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none';"
        f" frame-ancestors 'none'; connect-src 'self' {socket} {socket.replace('ws', 'http', 1)}"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "same-origin"}
    return FileResponse(DIST / "index.html", headers=headers)


def mount_assets(app: FastAPI) -> None:
    """Serves the scripts and styles. Their names change with their content."""
    app.mount("/assets", StaticFiles(directory=DIST / "assets", check_dir=False))
