"""What went wrong, in words for the people who use the chat. The pages show `message` as it is."""

from __future__ import annotations

import logging

import asyncpg
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from tidewire import TidewireError

log = logging.getLogger("chat")


class Problem(HTTPException):
    """Ends a request with this status and message. `field`: the field of the form that is wrong."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(status, message)
        self.field = field


def register(app: FastAPI) -> None:
    """Lets the app answer problems as JSON."""

    @app.exception_handler(AnyHTTPException)
    async def problem(_request: Request, error: AnyHTTPException) -> JSONResponse:
        if isinstance(error, Problem):
            return _answer(error.status_code, error.detail, error.field)
        return _answer(error.status_code, "There is nothing here." if error.status_code == 404 else error.detail)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(asyncpg.DataError)  # text that PostgreSQL cannot store
    async def not_understood(_request: Request, _error: Exception) -> JSONResponse:
        return _answer(422, "Something in this request is missing or too long, or has unusual characters.")

    @app.exception_handler(TidewireError)
    async def not_told(_request: Request, error: TidewireError) -> JSONResponse:
        log.warning("Tidewire did not do what was asked: %s", error)
        return _answer(503, "The chat cannot do this right now. Try again in a moment.")


def _answer(status: int, message: str, field: str | None = None) -> JSONResponse:
    return JSONResponse({"message": message, "field": field}, status)
