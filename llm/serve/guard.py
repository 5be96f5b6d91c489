# SPDX-License-Identifier: Apache-2.0
"""What happens before a request is read: size, key, kind of content, and what is counted."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from llm.serve import errors
from llm.serve.errors import ApiError
from llm.serve.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = ("/health", "/ready")
RUN = "llm.run"  # where a request's scope holds its running generations
READ_SECONDS = 30.0
_DISCARD = 8_000_000  # bytes of a refused body that are read, so that the client sees the answer


class Guard:
    """ASGI middleware that refuses early and counts requests in flight.

    Args:
        app: what handles requests that pass.
        service: has `settings`, `draining`, `in_flight` and `count(path, status)`.
    """

    def __init__(self, app: Any, service: Any):
        self._app = app
        self._service = service
        self._settings: Settings = service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._service.count(scope["path"], message["status"])
            await send(message)

        self._service.in_flight += 1
        try:
            self._check(scope)
            await self._app(scope, receive, counting)
        except ApiError as error:
            await _discard(receive)
            await error.response()(scope, receive, counting)
        finally:
            self._service.in_flight -= 1
            if RUN in scope:
                scope[RUN].close()

    def _check(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.max_headers:
            raise ApiError(431, "The request's headers are too large.", code="headers_too_large")
        if scope["path"] in OPEN_PATHS:
            return
        headers = Headers(scope=scope)
        self._check_key(headers.get("authorization", ""))
        if scope["method"] != "POST":
            return
        if self._service.draining:
            raise errors.draining()
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._settings.max_body:
            raise body_too_large(self._settings.max_body)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415, "Send JSON: Content-Type: application/json.", code="unsupported_media_type"
            )

    def _check_key(self, header: str) -> None:
        expected = self._settings.api_key
        if not expected:
            return
        scheme, _, given = header.partition(" ")
        good = hmac.compare_digest(given.strip().encode(), expected.encode())
        if scheme.lower() != "bearer" or not good:
            raise ApiError(
                401,
                "The API key is missing or wrong.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Raises:
        ApiError: 413 for a larger one, 408 for one that does not arrive.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > limit + _DISCARD:
                    break
    except TimeoutError:
        raise ApiError(408, "The body did not arrive in time.", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(499, "The client left.", code="client_closed") from None
    if size > limit:
        raise body_too_large(limit)
    return b"".join(parts)


def body_too_large(limit: int) -> ApiError:
    """Refuse a body."""
    return ApiError(413, f"The body exceeds {limit} bytes.", code="body_too_large")


async def _discard(receive: Receive) -> None:
    """Read what a refused client still sends, within bounds."""
    size = 0
    try:
        async with asyncio.timeout(2.0):
            while size < _DISCARD:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
