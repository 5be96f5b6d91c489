# SPDX-License-Identifier: Apache-2.0
"""Refusals in the shape that OpenAI clients understand."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: for the person who wrote the client.
        param: the field that is wrong.
        code: a word for programs.
        headers: sent with the refusal.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error as JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the error as a response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def draining() -> ApiError:
    """Refuse because the server is shutting down."""
    return ApiError(
        503, "The server is shutting down.", code="draining", headers={"Retry-After": "5"}
    )


def overloaded(retry_after: int) -> ApiError:
    """Refuse because too many generations wait."""
    return ApiError(
        429,
        "Too many requests are waiting; try again later.",
        code="queue_full",
        headers={"Retry-After": str(retry_after)},
    )
