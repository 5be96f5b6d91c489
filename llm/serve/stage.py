# SPDX-License-Identifier: Apache-2.0
"""The serve stage: open a model and answer over HTTP until told to stop."""

import os
import time
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from llm import files
from llm.core import config as configs
from llm.errors import ConfigError, StorageError
from llm.generate.language_model import LanguageModel, load
from llm.generate.stored import keep_integers
from llm.serve import settings as server_settings
from llm.serve.api import Service, create_app
from llm.serve.settings import Settings


def run(config: Any, workdir: str) -> None:
    """Serve a model until SIGTERM or Ctrl-C, then let running generations end.

    Args:
        config: `model` (what `llm.load` takes), `dtype`, `weights` (see `open_model`), and
            `serve` (see `settings.check`).
        workdir: receives server.json {"host", "port", "pid", "model"} once requests are taken;
            it is removed at the end.

    Raises:
        ConfigError: a wrong setting, a model without a tokenizer, or an address in use.
    """
    section = configs.bind(server_settings.check, config.serve, "serve")
    section["model_name"] = section.get("model_name") or Path(str(config.model)).name
    settings = server_settings.check(**section)
    lm = open_model(str(config.model), config.dtype, config.weights)
    if lm.tokenizer is None:
        raise ConfigError(
            f"{config.model} has no tokenizer.", "Put its tokenizer/ folder beside the model."
        )
    app = create_app(lm, settings)
    app.state.service.worker.warm_up()
    serve(app, settings, workdir)


def open_model(source: str, dtype: str, weights: str) -> LanguageModel:
    """Load a model.

    Args:
        source, dtype: of `llm.load`.
        weights: "float" makes quantised weights floating-point once; "integers" keeps them, for
            less memory and more work per token.
    """
    choices = ("float", "integers")
    configs.choose(weights, dict.fromkeys(choices), "config.weights")
    lm = load(source, dtype=dtype)
    return keep_integers(lm, source) if weights == "integers" else lm


class Server(uvicorn.Server):
    """A uvicorn server that drains before it stops and says where it listens.

    Args:
        config: uvicorn's.
        service: whose requests are waited for.
        announce: file to write once requests are taken.
    """

    def __init__(self, config: uvicorn.Config, service: Service, announce: str):
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new work at the first signal; stop at once at the second."""
        if self._service.draining:
            self.should_exit = True
            return
        self._service.draining = True
        self._deadline = time.monotonic() + self._service.settings.drain_seconds

    async def startup(self, sockets: Any = None) -> None:
        """Listen, then write where."""
        await super().startup(sockets=sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        where = {"host": host, "port": port, "pid": os.getpid()}
        files.write_json(self._announce, {**where, "model": self._service.settings.model_name})
        print(f"listening on http://{host}:{port}/v1", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Stop once nothing is in flight, or the time for it is over."""
        if self._service.draining:
            late = time.monotonic() > self._deadline
            self.should_exit = self.should_exit or late or not self._service.in_flight
            if late:
                self._service.worker.close(timeout=0)
        return await super().on_tick(counter)


def serve(app: Any, settings: Settings, workdir: str) -> None:
    """Run an application until a signal ends it."""
    announce = f"{workdir}/server.json"
    options = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        h11_max_incomplete_event_size=4 * settings.max_headers,
        timeout_graceful_shutdown=5,
    )
    try:
        Server(options, app.state.service, announce).run()
    except SystemExit as error:
        raise StorageError(
            f"Cannot listen on {settings.host}:{settings.port}.",
            "Set serve.port to another one, or to 0 for a free one.",
        ) from error
    finally:
        Path(announce).unlink(missing_ok=True)
