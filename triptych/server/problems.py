"""Errors as RFC 9457 problem documents, with the message that the command line gives."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from triptych.core.errors import TriptychError
from triptych.core.terminal import readable
from triptych.server.worker import Busy

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class ProblemDocument(BaseModel):
    """What is wrong with a request (RFC 9457)."""

    type: str = Field(description="A URI of the kind of problem; about:blank where status says it.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong, where, and what to do.")


class Problem(Exception):  # noqa: N818 - the name of the RFC
    """A request that cannot be answered.

    Attributes:
        status: HTTP status.
        detail: What is wrong, where, and what to do.
        headers: Of the response.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Say what is wrong."""
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the document as an HTTP response."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": readable(self.detail),
        }
        return JSONResponse(document, self.status, self.headers, MEDIA_TYPE)


def problem_of(error: BaseException) -> Problem:
    """Return what an error means to a client; of an error of ours, nothing but that it is one."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Busy):
        return Problem(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, TriptychError):
        return Problem(422, str(error))
    return Problem(500, "the server failed to answer; its log says why")
