# SPDX-License-Identifier: Apache-2.0
"""Generate with models that read a prompt whole: encoder-decoders, and prefix language models.

An encoder reads the prompts once; the decoder starts from the padding token, as T5's does. A
prefix language model's prompt sees itself both ways, so that no part of it can be read before the
rest is known: the engine, which reads prompts in pieces, is for causal models. Everything else
(sampling, stops, seeds) is as there.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError
from llm.generate import requests as asked
from llm.generate import sampling
from llm.generate.buckets import (
    bucket,
    check_decodes,
    count_program,
    layout,
    parts,
    power_of_two,
    row_count,
)
from llm.generate.requests import Collector, Completion, Piece, Request
from llm.models.cache import Cache, init_cache

CHUNK = 16  # decode steps per visit of the host
MAX_BATCH = 64
_SMALLEST = 16
_STOP_IDS = 4  # per row, at least

Chosen = tuple[list[int], list[float]]  # one row's new tokens and their log-probabilities


class State(NamedTuple):
    """What the device keeps between chunks."""

    cache: Cache
    token: jax.Array  # [B] int32, chosen but not yet in the cache
    position: jax.Array  # [B] int32, of that token
    left: jax.Array  # [B] int32, tokens that may still be chosen; 0 = finished
    seen: jax.Array  # [B, V] bool, tokens of the text so far


@functools.partial(jax.jit, static_argnames=("model", "size"))
def _read(
    model: Any,
    params: Any,
    prompts: jax.Array,  # [B, C]
    lengths: jax.Array,  # [B]
    start: jax.Array,  # [] int32
    max_tokens: jax.Array,  # [B]
    size: int,
) -> State:
    """Read the prompts and keep their keys and values of every layer."""
    count_program("seq2seq_read")
    B, C = prompts.shape
    segments = (jnp.arange(C)[None] < lengths[:, None]).astype(jnp.int32)
    variables = {"params": params}
    if model.config.architecture == "decoder":
        return _read_both_ways(model, variables, prompts, segments, max_tokens, size)
    encoded = model.apply(variables, prompts, segments, method="encode")
    cache = init_cache(model.config, B, size, model.config.dtype, C)
    nothing = jnp.zeros((B, 1), jnp.int32)
    # A step over padding: it writes no token, only the encoder's keys and values.
    _, cache = model.apply(
        variables,
        nothing,
        segments=nothing,
        cache=cache,
        encoded=encoded,
        encoder_segments=segments,
        method="hidden",
    )
    token = jnp.full((B,), start, jnp.int32)
    unseen = jnp.zeros((B, model.config.vocab_size), bool)
    return State(cache, token, jnp.zeros((B,), jnp.int32), max_tokens, unseen)


def _read_both_ways(
    model: Any,
    variables: Any,
    prompts: jax.Array,
    segments: jax.Array,
    max_tokens: jax.Array,
    size: int,
) -> State:
    """Read prompts of a prefix language model: each token sees its whole prompt."""
    B, C = prompts.shape
    cache = init_cache(model.config, B, C + size, model.config.dtype)
    everything = jnp.ones((B, C + size), bool)
    _, cache = model.apply(
        variables, prompts, segments=segments, cache=cache, prefix=everything, method="hidden"
    )
    # The last token goes again, as the one that writes: it saw all of the prompt, and only that.
    last = jnp.maximum(cache.lengths - 1, 0)
    token = jnp.take_along_axis(prompts, last[:, None], axis=1)[:, 0]
    seen = jnp.zeros((B, model.config.vocab_size), bool)
    seen = seen.at[jnp.arange(B)[:, None], prompts].max(segments > 0)
    return State(cache._replace(lengths=last), token, last, max_tokens, seen)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def _write(
    model: Any,
    params: Any,
    state: State,
    settings: sampling.Rows,
    stop_ids: jax.Array,  # [B, N], -1 = none
    go_on: jax.Array,  # [B] bool: False ends a row from the host
) -> tuple[State, jax.Array, jax.Array]:
    """Choose up to CHUNK tokens per row; [B, CHUNK] ids (-1 = none) and logprobs."""
    count_program("seq2seq_write")
    B = state.token.shape[0]
    rows = jnp.arange(B)
    state = state._replace(left=jnp.where(go_on, state.left, 0))
    out = jnp.full((B, CHUNK), -1, jnp.int32), jnp.zeros((B, CHUNK), jnp.float32)

    def more(carry: Any) -> jax.Array:
        step, now, _, _ = carry
        return (step < CHUNK) & jnp.any(now.left > 0)

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
        stopped = jnp.any(token[:, None] == stop_ids, axis=1)
        left = jnp.where(alive & ~stopped, now.left - 1, 0)
        seen = now.seen.at[rows, token].set(True)
        tokens = tokens.at[:, step].set(jnp.where(alive, token, -1))
        logprobs = logprobs.at[:, step].set(logprob)
        return step + 1, State(cache, token, now.position + 1, left, seen), tokens, logprobs

    _, state, tokens, logprobs = jax.lax.while_loop(more, take, (0, state, *out))
    return state, tokens, logprobs


def check(request: Request, config: Any) -> Request:
    """Return the request, or say why it cannot be served.

    Raises:
        ConfigError: nothing to read or to write, or more than the model has room for.
    """
    max_length = config.max_length
    if config.architecture == "decoder":
        return asked.check(request, max_length)
    if not request.tokens:
        raise ConfigError("The prompt is empty.", "Give at least one token to read.")
    if request.max_tokens < 1:
        raise ConfigError(f"max_tokens={request.max_tokens} asks for nothing.", "Use 1 or more.")
    if max(len(request.tokens), request.max_tokens) > max_length:
        raise ConfigError(
            f"The prompt has {len(request.tokens)} tokens and max_tokens={request.max_tokens}; the "
            f"model has {max_length} positions on either side.",
            "Shorten the prompt or lower max_tokens.",
        )
    request.settings.validate()
    return request


def _steps(
    model: Any, params: Any, requests: Sequence[Request], start: int, mesh: Any
) -> Iterator[tuple[list[Chosen], np.ndarray]]:
    """Yield the rows' new tokens chunk by chunk, with the array in which the host ends rows."""
    check_decodes(mesh)
    count = len(requests)
    padded = [*requests, *[Request((0,), 1)] * (row_count(count, parts(mesh)) - count)]
    longest = model.config.max_length
    width = bucket(max(len(r.tokens) for r in padded), _SMALLEST, longest)
    stops = power_of_two(max(_STOP_IDS, *(len(r.stop_ids) for r in padded)))
    most = max(r.max_tokens for r in padded)
    settings = sampling.rows([r.settings for r in padded])
    stop_ids = jnp.asarray(_table([r.stop_ids for r in padded], stops, -1))
    with layout(mesh):
        state = _read(
            model,
            params,
            jnp.asarray(_table([r.tokens for r in padded], width, 0)),
            jnp.asarray([len(r.tokens) for r in padded], jnp.int32),
            jnp.int32(start),
            jnp.asarray([r.max_tokens for r in padded], jnp.int32),
            bucket(most, _SMALLEST, max(longest, most)),
        )
    alive = np.arange(len(padded)) < count
    while alive.any():
        with layout(mesh):
            state, chosen, logprobs = _write(
                model, params, state, settings, stop_ids, jnp.asarray(alive)
            )
        ids, values, left = np.asarray(chosen), np.asarray(logprobs), np.asarray(state.left)
        steps = []
        for row in range(count):
            kept = (ids[row] >= 0) & alive[row]
            steps.append((ids[row][kept].tolist(), values[row][kept].tolist()))
        alive &= left > 0
        yield steps, alive


def _table(rows: Sequence[Sequence[int]], width: int, empty: int) -> np.ndarray:
    table = np.full((len(rows), width), empty, np.int32)
    for row, ids in enumerate(rows):
        table[row, : len(ids)] = np.asarray(ids, np.int32)
    return table


def _start(tokenizer: Any) -> int:
    return 0 if tokenizer is None else tokenizer.pad_id


def _collector(request: Request, tokenizer: Any, config: Any) -> Collector:
    """Gather a text; what an encoder-decoder writes is one of its own, without the prompt."""
    if config.architecture == "encoder_decoder":
        request = request._replace(tokens=())
    return Collector(request, tokenizer)


def complete(
    model: Any, params: Any, tokenizer: Any, requests: Sequence[Request], mesh: Any = None
) -> list[Completion]:
    """Answer any number of requests, in their order; see `llm.generate.engine.Engine.complete`.

    Raises:
        ConfigError: see `check`.
    """
    for request in requests:
        check(request, model.config)
    done: list[Completion] = []
    for first in range(0, len(requests), MAX_BATCH):
        group = requests[first : first + MAX_BATCH]
        collected = [_collector(request, tokenizer, model.config) for request in group]
        for steps, alive in _steps(model, params, group, _start(tokenizer), mesh):
            for row, step in enumerate(steps):
                if not collected[row].reason and collected[row].add(*step).reason:
                    alive[row] = False
        done += [one.completion() for one in collected]
    return done


def stream(
    model: Any, params: Any, tokenizer: Any, request: Request, mesh: Any = None
) -> Iterator[Piece]:
    """Write one answer, yielding pieces that join to the text that `complete` returns."""
    check(request, model.config)
    collector = _collector(request, tokenizer, model.config)
    for steps, _ in _steps(model, params, [request], _start(tokenizer), mesh):
        yield collector.add(*steps[0])
        if collector.reason:
            return
