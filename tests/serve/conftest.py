# SPDX-License-Identifier: Apache-2.0
"""A real server on a free loopback port, around a tiny random model or a scripted one."""

import contextlib
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uvicorn

from llm.core.sharding import unbox
from llm.generate.engine import Engine, Options
from llm.generate.language_model import LanguageModel
from llm.generate.loading import parameter_shapes
from llm.generate.programs import Chosen
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.serve.api import create_app
from llm.serve.settings import check
from llm.serve.stage import Server
from llm.serve.worker import Worker
from llm.tokenizers.loading import load as load_tokenizer


class Script:
    """A device whose rows spell a given text, one token a step, at a given pace."""

    def __init__(self, text_ids, pace, log):
        self.text_ids, self.pace, self.log = text_ids, pace, log
        self.given = {}  # first page -> (position, tokens given)

    def clear(self):
        pass

    def grow(self, pages):
        pass

    def read(self, tokens, start, real, table):
        pass

    def decode(self, rows, steps):
        if self.pace:
            time.sleep(self.pace)
        self.log.append(int((rows.left > 0).sum()))
        tokens = np.zeros((len(rows.token), 1), np.int32)
        for row in np.flatnonzero(rows.left > 0):
            page, position = int(rows.table[row, 0]), int(rows.position[row])
            before, count = self.given.get(page, (-1, 0))
            count = count if before == position else 0
            tokens[row] = self.text_ids[count % len(self.text_ids)]
            self.given[page] = position + 1, count + 1
        return Chosen(tokens, np.full(tokens.shape, -0.5), (rows.left > 0).astype(np.int32), 1)


@contextlib.contextmanager
def serving(lm, worker=None, workdir=None, **options):
    """Run a server in a thread; yields its address, service and server."""
    settings = check(**{"model_name": "tiny", "port": 0, **options})
    app = create_app(lm, settings, worker)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", http="h11"
    )
    server = Server(config, app.state.service, str(workdir / "server.json"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}", port=port, service=app.state.service, server=server
        )
    finally:
        server.should_exit = True
        app.state.service.worker.close()
        thread.join(20)
        assert not thread.is_alive()


def random_parameters(model, scale=0.1):
    """Draw parameters with NumPy: no program has to be compiled for that."""
    generator = np.random.default_rng(0)
    shapes = unbox(parameter_shapes(model))
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, scale, leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("byte")


@pytest.fixture(scope="session")
def lm(tokenizer):
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=64
    )
    model = Transformer(config)
    params = random_parameters(model)
    return LanguageModel(config, model, params, tokenizer, starts_texts=True)


@pytest.fixture(scope="session")
def server(lm, tmp_path_factory):
    with serving(lm, workdir=tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def scripted(lm, tmp_path):
    """Return a context manager: a server whose model spells `text` at a pace."""

    @contextlib.contextmanager
    def make(text="abcdefgh", pace=0.0, **options):
        log = []
        ids = lm.tokenizer.encode(text)
        engine = Engine(
            lm.model,
            lm.params,
            lm.tokenizer,
            options=Options(queue=options.get("max_queue", 32)),
            device=Script(ids, pace, log),
        )
        worker = Worker(lm, engine=engine)
        with serving(lm, worker, tmp_path, **options) as running:
            running.log = log
            yield running

    return make
