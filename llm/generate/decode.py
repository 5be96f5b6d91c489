# SPDX-License-Identifier: Apache-2.0
"""Generate text: prefill the prompts, then decode in chunks that stay on the device.

Prompts of unequal length share a batch: the cache gives every row its own positions, and a row's
tokens depend on its own prompt, settings and seed only.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.core.sharding import batch_parts, use_layout
from llm.errors import ConfigError
from llm.generate import sampling
from llm.generate.buckets import bucket, count_program, power_of_two, row_count
from llm.generate.sampling import Settings
from llm.generate.text import TextStream
from llm.models.cache import Cache, init_cache

CHUNK = 16  # decode steps per visit of the host
MAX_BATCH = 64
CACHE_BYTES = 1 << 30  # of one batch
_SMALLEST_CACHE = 64
_SMALLEST_PROMPT = 16
_STOP_IDS = 4  # per row, at least; the table's width is part of a program's shape
_PIECE_SECONDS = 0.05  # between two pieces of a stream


class Request(NamedTuple):
    """One text to generate: prompt ids, and when and how to go on."""

    tokens: Sequence[int]
    max_tokens: int
    settings: Settings = Settings()
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


class Completion(NamedTuple):
    """What was generated: `tokens` include the stop token, `text` ends before any stop.

    logprobs: of each token under the unmodified model.
    reason: "stop" (a stop token or string) or "length" (max_tokens reached).
    """

    tokens: list[int]
    logprobs: list[float]
    text: str
    reason: str


class State(NamedTuple):
    """What the device keeps between chunks."""

    cache: Cache
    token: jax.Array  # [B] int32, chosen but not yet in the cache
    position: jax.Array  # [B] int32, of that token
    left: jax.Array  # [B] int32, tokens that may still be chosen; 0 = finished
    seen: jax.Array  # [B, V] bool, tokens of the prompt and since


class Limits(NamedTuple):
    """When rows end."""

    max_tokens: jax.Array  # [B] int32
    stop_ids: jax.Array  # [B, N] int32, -1 = none


class Step(NamedTuple):
    """The new tokens of one row: ids, log-probabilities, and whether the row has ended."""

    tokens: list[int]
    logprobs: list[float]
    ended: bool


@functools.partial(jax.jit, static_argnames=("model", "size"))
def _prefill(
    model: Any,
    params: Any,
    tokens: jax.Array,  # [B, T]
    lengths: jax.Array,  # [B]
    settings: sampling.Rows,
    limits: Limits,
    size: int,
) -> tuple[State, jax.Array]:
    """Read the prompts and choose each row's first token; also return its logprob [B]."""
    count_program("prefill")
    B, T = tokens.shape
    real = jnp.arange(T)[None, :] < lengths[:, None]
    cache = init_cache(model.config, B, size, model.config.dtype)
    hidden, cache = model.apply(
        {"params": params}, tokens, segments=real.astype(jnp.int32), cache=cache, method="hidden"
    )
    last = jnp.maximum(lengths - 1, 0)
    final = jnp.take_along_axis(hidden, last[:, None, None], axis=1)  # [B, 1, D]
    logits = model.apply({"params": params}, final, method="head")[:, 0]
    line = jnp.arange(B)[:, None]
    seen = jnp.zeros(logits.shape, bool).at[line, tokens].max(real)
    token, logprob = sampling.sample(logits, settings, lengths, seen)
    left = _left_after(token, limits.max_tokens, limits.stop_ids)
    seen = seen.at[jnp.arange(B), token].set(True)
    return State(cache, token, lengths, left, seen), logprob


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def _decode(
    model: Any,
    params: Any,
    state: State,
    settings: sampling.Rows,
    limits: Limits,
    go_on: jax.Array,  # [B] bool: False ends a row from the host
    steps: jax.Array,  # how many to take, at most CHUNK
) -> tuple[State, jax.Array, jax.Array]:
    """Choose up to CHUNK tokens per row; [B, CHUNK] ids (-1 = none) and logprobs."""
    count_program("decode")
    B = state.token.shape[0]
    state = state._replace(left=jnp.where(go_on, state.left, 0))
    out = jnp.full((B, CHUNK), -1, jnp.int32), jnp.zeros((B, CHUNK), jnp.float32)

    def more(carry: Any) -> jax.Array:
        step, now, _, _ = carry
        return (step < steps) & jnp.any(now.left > 0)

    def take(carry: Any) -> Any:
        step, now, tokens, logprobs = carry
        alive = now.left > 0
        logits, cache = model.apply(
            {"params": params},
            now.token[:, None],
            segments=alive[:, None].astype(jnp.int32),
            positions=now.position[:, None],
            cache=now.cache,
        )
        token, logprob = sampling.sample(logits[:, 0], settings, now.position + 1, now.seen)
        token = jnp.where(alive, token, now.token)
        left = jnp.where(alive, _left_after(token, now.left, limits.stop_ids), 0)
        following = State(
            cache,
            token,
            jnp.where(alive, now.position + 1, now.position),
            left,
            now.seen.at[jnp.arange(B), token].set(True),
        )
        tokens = tokens.at[:, step].set(jnp.where(alive, token, -1))
        return step + 1, following, tokens, logprobs.at[:, step].set(logprob)

    _, state, tokens, logprobs = jax.lax.while_loop(more, take, (0, state, *out))
    return state, tokens, logprobs


def _left_after(token: jax.Array, left: jax.Array, stop_ids: jax.Array) -> jax.Array:
    """Return how many tokens rows may still choose after this one."""
    stopped = jnp.any(token[:, None] == stop_ids, axis=1)
    return jnp.where(stopped, 0, left - 1)


class Batch:
    """A group of requests that are decoded together; their prompts are read at once.

    Args:
        model, params: the decoder and its parameters.
        requests: B of them, checked; padded to a power of two.
        mesh: over which the parameters are laid, or None.
    """

    def __init__(self, model: Any, params: Any, requests: Sequence[Request], mesh: Any = None):
        self._model, self._params, self._mesh = model, params, mesh
        self._rows = len(requests)
        spare = row_count(self._rows, parts(mesh)) - self._rows
        padded = [*requests, *[Request((0,), 1)] * spare]
        self._settings = sampling.rows([r.settings for r in padded])
        width = power_of_two(max(_STOP_IDS, *(len(r.stop_ids) for r in padded)))
        self._limits = Limits(
            jnp.asarray([r.max_tokens for r in padded], jnp.int32),
            jnp.asarray(_table([r.stop_ids for r in padded], width, -1)),
        )
        longest = model.config.max_length
        T = bucket(max(len(r.tokens) for r in padded), _SMALLEST_PROMPT, longest)
        with layout(mesh):
            self._state, logprob = _prefill(
                model,
                params,
                jnp.asarray(_table([r.tokens for r in padded], T, 0)),
                jnp.asarray([len(r.tokens) for r in padded], jnp.int32),
                self._settings,
                self._limits,
                cache_size(requests, longest),
            )
        self._alive = np.arange(len(padded)) < self._rows
        self._first: Any = (self._state.token[:, None], logprob[:, None])

    @property
    def running(self) -> bool:
        """Whether any row goes on."""
        return bool(self._alive.any())

    def end(self, row: int) -> None:
        """Choose no further tokens for a row."""
        self._alive[row] = False

    def steps(self, n: int = CHUNK) -> list[Step]:
        """Choose up to n tokens per row; the first call returns the first token alone."""
        if self._first is not None:
            chosen, self._first = self._first, None
        else:
            chosen = self._advance(min(n, CHUNK))
        tokens, logprobs = map(np.asarray, chosen)
        left = np.asarray(self._state.left)
        result = []
        for row in range(self._rows):
            kept = (tokens[row] >= 0) & self._alive[row]
            ended = bool(left[row] <= 0)
            result.append(Step(tokens[row][kept].tolist(), logprobs[row][kept].tolist(), ended))
        self._alive &= left > 0
        return result

    def _advance(self, n: int) -> tuple[jax.Array, jax.Array]:
        with layout(self._mesh):
            self._state, tokens, logprobs = _decode(
                self._model,
                self._params,
                self._state,
                self._settings,
                self._limits,
                jnp.asarray(self._alive),
                n,
            )
        return tokens, logprobs


def _table(rows: Sequence[Sequence[int]], width: int, empty: int) -> np.ndarray:
    """Return rows of ids as one [B, width] int32 array, filled up with `empty`."""
    table = np.full((len(rows), width), empty, np.int32)
    for row, ids in enumerate(rows):
        table[row, : len(ids)] = np.asarray(ids, np.int32)
    return table


def layout(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    """Put the mesh's layout in force, or do nothing without a mesh."""
    return contextlib.nullcontext() if mesh is None else use_layout(mesh)


def parts(mesh: Any) -> int:
    """Return of what number the rows of a batch must be a multiple."""
    return 1 if mesh is None else batch_parts(mesh)


def cache_size(requests: Sequence[Request], longest: int) -> int:
    """Return how many slots per row a batch of requests needs, rounded up to a bucket."""
    need = max(len(request.tokens) + request.max_tokens for request in requests)
    return bucket(need, _SMALLEST_CACHE, longest)


def check(request: Request, max_length: int) -> Request:
    """Return the request, or say why it cannot be served.

    Raises:
        ConfigError: nothing to continue, nothing to generate, a setting out of range, or a prompt
            that with max_tokens does not fit the model.
    """
    n = len(request.tokens)
    if n == 0:
        raise ConfigError("The prompt is empty.", "Give at least one token to continue.")
    if request.max_tokens < 1:
        raise ConfigError(f"max_tokens={request.max_tokens} asks for nothing.", "Use 1 or more.")
    if n + request.max_tokens > max_length:
        room = max_length - n
        raise ConfigError(
            f"The prompt has {n} tokens; with max_tokens={request.max_tokens} it exceeds the "
            f"model's {max_length} positions.",
            f"Use max_tokens <= {room}." if room > 0 else "Shorten the prompt.",
        )
    request.settings.validate()
    return request


def complete(
    model: Any, params: Any, tokenizer: Any, requests: Sequence[Request], mesh: Any = None
) -> list[Completion]:
    """Generate the continuations of any number of requests, in their order.

    Args:
        tokenizer: makes the text and finds stop strings; None leaves the texts empty.

    Raises:
        ConfigError: see `check`.
    """
    for request in requests:
        check(request, model.config.max_length)
    order = sorted(range(len(requests)), key=lambda i: -cache_size([requests[i]], 1 << 30))
    done: dict[int, Completion] = {}
    while order:
        size = cache_size([requests[order[0]]], model.config.max_length)
        most = _rows_that_fit(model.config, size)
        group, order = order[:most], order[most:]
        chosen = [requests[i] for i in group]
        done |= dict(
            zip(group, _complete_batch(model, params, tokenizer, chosen, mesh), strict=True)
        )
    return [done[i] for i in range(len(requests))]


def _rows_that_fit(config: Any, size: int) -> int:
    """Return how many rows of `size` slots the cache of one batch may have (a power of two)."""
    width = jnp.dtype(config.dtype).itemsize
    row = 2 * config.n_layers * size * config.n_kv_heads * config.head_dim * width
    rows = max(1, min(MAX_BATCH, CACHE_BYTES // row))
    return 1 << (rows.bit_length() - 1)


def _complete_batch(
    model: Any, params: Any, tokenizer: Any, requests: Sequence[Request], mesh: Any
) -> list[Completion]:
    batch = Batch(model, params, requests, mesh)
    collected = [Collector(request, tokenizer) for request in requests]
    while batch.running:
        for row, step in enumerate(batch.steps()):
            if collected[row].add(step).reason:
                batch.end(row)
    return [one.completion() for one in collected]


class Piece(NamedTuple):
    """What a stream yields: new text, its tokens, and at the end the reason ("" before)."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    reason: str


class Collector:
    """Gathers one request's tokens and turns them into text up to its stop."""

    def __init__(self, request: Request, tokenizer: Any):
        self._request = request
        self._text = None
        if tokenizer is not None:
            self._text = TextStream(tokenizer, request.tokens, request.stop)
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.reason = ""

    def add(self, step: Step) -> Piece:
        """Take the tokens of a step, as far as the text goes on."""
        start, pieces = len(self._tokens), []
        for token, logprob in zip(step.tokens, step.logprobs, strict=True):
            self._tokens.append(token)
            self._logprobs.append(logprob)
            if token in self._request.stop_ids:
                self.reason = "stop"
            elif self._text is not None:
                pieces.append(self._text.push(token))
                self.reason = "stop" if self._text.stopped else ""
            if self.reason:
                break
        if not self.reason and step.ended:
            self.reason = "length"
        if self.reason and self._text is not None:
            pieces.append(self._text.finish())
        text = "".join(pieces)
        self._pieces.append(text)
        return Piece(text, self._tokens[start:], self._logprobs[start:], self.reason)

    def completion(self) -> Completion:
        """Return everything gathered."""
        return Completion(self._tokens, self._logprobs, "".join(self._pieces), self.reason)


def stream(
    model: Any, params: Any, tokenizer: Any, request: Request, mesh: Any = None
) -> Iterator[Piece]:
    """Generate one continuation, yielding pieces as they become certain.

    The pieces join to the text that `complete` returns. How many steps are taken between two
    pieces follows the model's speed.

    Raises:
        ConfigError: see `check`.
    """
    batch = Batch(model, params, [check(request, model.config.max_length)], mesh)
    collector = Collector(request, tokenizer)
    n = 1
    while not collector.reason:
        started = time.perf_counter()
        piece = collector.add(batch.steps(n)[0])
        elapsed = max(time.perf_counter() - started, 1e-6)
        n = max(1, min(CHUNK, int(n * _PIECE_SECONDS / elapsed)))
        yield piece
