# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: OpenAI's chat and text completions, plain and streamed."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from llm.serve import replies
from llm.serve.errors import ApiError, draining
from llm.serve.guard import Guard, read_body
from llm.serve.monitoring import Metrics
from llm.serve.requests import Run, begin
from llm.serve.schema import ChatRequest, Common, CompletionRequest, parse
from llm.serve.settings import Settings
from llm.serve.worker import Worker

log = logging.getLogger(__name__)

PATHS = (
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/health",
    "/ready",
    "/metrics",
)


class Service:
    """What the handlers share: the model, its worker, the settings and the counters.

    Args:
        lm: the language model.
        settings: of the server.
        worker: runs the model; one is made if None.
    """

    def __init__(self, lm: Any, settings: Settings, worker: Worker | None = None):
        self.lm = lm
        self.settings = settings
        self.worker = worker or Worker(lm, settings.max_queue)
        self.metrics = Metrics(lambda: self.worker.waiting, lambda: self.worker.running)
        self.draining = False
        self.in_flight = 0
        self.created = int(time.time())

    def count(self, path: str, status: int) -> None:
        """Count an answer; paths that do not exist share one name."""
        known = path if path in PATHS or path.startswith("/v1/models/") else "other"
        name = "/v1/models" if known.startswith("/v1/models/") else known
        self.metrics.requests.labels(name, str(status)).inc()

    def model_card(self) -> dict[str, Any]:
        """Return the model as /v1/models lists it."""
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "local",
            "max_model_len": self.lm.config.max_length,
        }


def create_app(lm: Any, settings: Settings, worker: Worker | None = None) -> FastAPI:
    """Make the ASGI application of a language model.

    Args:
        lm: what `llm.load` returns; needs a tokenizer.
        settings: checked by `llm.serve.settings.check`.
        worker: the thread that runs the model; made from `lm` if None.
    """
    service = Service(lm, settings, worker)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(Guard, service=service)
    _add_error_handlers(app)
    _add_status(app, service)
    _add_models(app, service)
    _add_completions(app, service)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "There is no such path.", 405: "This path has another method."}
        message = words.get(error.status_code, "The request cannot be served.")
        return ApiError(
            error.status_code, message, code="bad_route", headers=error.headers
        ).response()

    async def broken(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return ApiError(500, "The server could not finish this request.").response()

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


def _add_status(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Tell that the process and its model thread live."""
        if not service.worker.alive:
            return JSONResponse({"status": "model thread is gone"}, 500)
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Tell whether new requests are taken."""
        if service.draining:
            return draining().response()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the counters for Prometheus."""
        return Response(service.metrics.render(), media_type=service.metrics.content_type)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [service.model_card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe the model."""
        _check_model(service, name)
        return service.model_card()


def _add_completions(app: FastAPI, service: Service) -> None:
    async def answer(request: Request, kind: type[Common]) -> Response:
        started = time.perf_counter()
        body = parse(kind, await read_body(request, service.settings.max_body))
        _check_model(service, body.model)
        run = await begin(service, body, request.scope, started)
        if body.stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            events = _stream(service, run)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return JSONResponse(await _collect(service, run, request))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        return await answer(request, ChatRequest)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await answer(request, CompletionRequest)


def _check_model(service: Service, name: str) -> None:
    if name != service.settings.model_name:
        raise ApiError(
            404,
            f"There is no such model here; this server has {service.settings.model_name!r}.",
            param="model",
            code="model_not_found",
        )


async def _collect(service: Service, run: Run, request: Request) -> dict[str, Any]:
    """Wait for all choices; a client that leaves cancels them."""
    watcher = asyncio.create_task(_watch(run, request))
    try:
        pieces: list[list[Any]] = [[] for _ in run.jobs]
        async for index, piece in run.pieces():
            pieces[index].append(piece)
        return replies.whole(run.reply, pieces, service.lm.tokenizer, run.usage())
    finally:
        watcher.cancel()


async def _watch(run: Run, request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    run.leave()


async def _stream(service: Service, run: Run) -> AsyncIterator[bytes]:
    """Yield server-sent events."""
    begun: set[int] = set()
    try:
        async for index, piece in run.pieces():
            first = index not in begun
            begun.add(index)
            # A piece may be empty while a character or a stop string is not complete.
            if piece.text or piece.reason or first or run.reply.logprobs:
                yield replies.event(
                    replies.chunk(run.reply, index, piece, first, service.lm.tokenizer)
                )
        if run.include_usage:
            yield replies.event(replies.last_chunk(run.reply, run.usage()))
        yield replies.DONE
    except ApiError as error:
        yield replies.event(error.body())
        yield replies.DONE
