# SPDX-License-Identifier: Apache-2.0
"""Guess the next tokens of texts that are decoded: from the text, by a small model, or narrowly.

A guess is only ever tried: the model chooses each token itself, with the key of its row and place,
and keeps the guesses that it would have chosen. What guesses draws with the same keys.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.generate import sampling
from llm.models.paged import PagedCache, Pages

_SURE = 4  # tokens in a row that occurred before: what followed them is then tried at once


class Rows(NamedTuple):
    """What the host sends for R rows (NumPy arrays); a row that is not used has nothing left."""

    table: Any  # [R, n] int32 pages
    token: Any  # [R] int32, chosen but not yet in the pages
    position: Any  # [R] int32, of that token
    left: Any  # [R] int32, tokens that may still be chosen
    history: Any  # [R, C] int32, the text so far; read up to `position`
    guess: Any  # [R] bool: whether guessed tokens may be accepted
    stop_ids: Any  # [R, N] int32, -1 = none
    settings: sampling.Rows


class State(NamedTuple):
    """Where the rows of a decode call stand."""

    pages: tuple[Pages, ...]
    token: jax.Array  # [R]
    position: jax.Array  # [R]
    left: jax.Array  # [R]
    history: jax.Array  # [R, C]
    seen: jax.Array  # [R, V] bool
    tokens: jax.Array  # [R, STEPS * T]
    logprobs: jax.Array
    given: jax.Array  # [R]


def within(model: Any, positions: jax.Array) -> jax.Array:
    """Keep the positions of padding inside the model's tables."""
    return jnp.minimum(positions, model.config.max_length - 1)


def may_guess(rows: Rows) -> jax.Array:
    """Tell which rows [R] take guesses: not under a penalty, which changes with every token."""
    return rows.guess & (rows.settings.repetition_penalty == 1)


def look_up(history: jax.Array, position: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Guess the next n tokens [R, n] from what followed the last ones earlier in the text.

    The longest match of up to _SURE tokens counts, of equals the latest; a match near the end is
    read on periodically. Without a match the guess is worthless, and costs nothing.

    Returns:
        The guesses, and how many tokens [R] matched.
    """
    C = history.shape[1]
    place = jnp.arange(C, dtype=jnp.int32)[None]
    run = place < position[:, None]
    score = jnp.zeros(history.shape, jnp.int32)
    for back in range(_SURE):
        last = jnp.take_along_axis(history, jnp.maximum(position - back, 0)[:, None], axis=1)
        earlier = jnp.pad(history, ((0, 0), (back, 0)), constant_values=-1)[:, :C]
        run = run & (earlier == last)
        score = score + run
    best = jnp.argmax(score * C + place * (score > 0), axis=1).astype(jnp.int32)
    period = jnp.maximum(position - best, 1)
    follow = best[:, None] + 1 + jnp.arange(n, dtype=jnp.int32)[None] % period[:, None]
    guesses = jnp.take_along_axis(history, jnp.minimum(follow, C - 1), axis=1)
    return guesses, jnp.max(score, axis=1)


def draft_small(
    model: Any, params: Any, pages: Pages, state: State, rows: Rows, n: int
) -> tuple[jax.Array, Pages]:
    """Let the small model choose the next n tokens [R, n], with the draws of the large one.

    Its first pass reads the last two tokens, because the one before the last may have been the
    large model's own and is then not in its pages.
    """

    def follow(carry: tuple[Pages, jax.Array], step: jax.Array) -> Any:
        pages, token = carry
        at = (state.position + step)[:, None]
        real = (state.left > step)[:, None]
        token, pages = _guess(model, params, pages, state, rows, (token[:, None], at, real), step)
        return (pages, token), token

    before = jnp.maximum(state.position - 1, 0)
    first = jnp.take_along_axis(state.history, before[:, None], axis=1)
    tokens = jnp.concatenate([first, state.token[:, None]], axis=1)
    at = jnp.stack([before, state.position], axis=1)
    # A text of one token has nothing before it.
    real = jnp.stack([state.position > 0, state.left > 0], axis=1) & (state.left > 0)[:, None]
    token, pages = _guess(model, params, pages, state, rows, (tokens, at, real), 0)
    (pages, _), others = jax.lax.scan(follow, (pages, token), jnp.arange(1, n, dtype=jnp.int32))
    return jnp.concatenate([token[:, None], others.T], axis=1), pages


def draft_narrow(
    model: Any,
    params: Any,
    pages: Pages,
    state: State,
    rows: Rows,
    looked_up: jax.Array,  # [R, n]
    known: jax.Array,  # [R]
) -> tuple[jax.Array, Pages]:
    """Let the model's narrow weights choose the next tokens [R, n] where the text is not sure.

    They go on from the model's own pages, and what they put there is overwritten by the pass that
    checks their guesses.
    """
    wanted = may_guess(rows) & (known < _SURE) & (state.left > 1)

    def more(carry: tuple[jax.Array, Any]) -> jax.Array:
        return jnp.any(wanted & (state.left > carry[0] + 1)) & (carry[0] < looked_up.shape[1])

    def follow(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        step, (pages, guesses, token) = carry
        at = (state.position + step)[:, None]
        real = (wanted & (state.left > step + 1))[:, None]
        token, pages = _guess(model, params, pages, state, rows, (token[:, None], at, real), step)
        guesses = guesses.at[:, step].set(jnp.where(wanted, token, guesses[:, step]))
        return step + 1, (pages, guesses, token)

    start = (jnp.int32(0), (pages, looked_up, state.token))
    _, (pages, guesses, _) = jax.lax.while_loop(more, follow, start)
    return guesses, pages


def _guess(
    model: Any,
    params: Any,
    pages: Pages,
    state: State,
    rows: Rows,
    inputs: tuple[jax.Array, jax.Array, jax.Array],  # tokens, positions, real: [R, T]
    step: jax.Array | int,
) -> tuple[jax.Array, Pages]:
    """Choose the token [R] after `inputs`, `step` tokens past the current one."""
    tokens, at, real = inputs
    hidden, cache = model.apply(
        {"params": params},
        tokens,
        segments=real.astype(jnp.int32),
        positions=within(model, at),
        cache=PagedCache(pages, rows.table),
        method="hidden",
    )
    logits = model.apply({"params": params}, hidden[:, -1:], method="head")[:, 0]
    place = state.position + step + 1
    return sampling.sample(logits, rows.settings, place, state.seen)[0], cache.pages


def follow_text(model: Any, params: Any, pages: Pages, state: State, rows: Rows) -> Pages:
    """Put the current token into the small model's pages while it is not asked to guess."""
    _, cache = model.apply(
        {"params": params},
        state.token[:, None],
        segments=(state.left > 0).astype(jnp.int32)[:, None],
        positions=within(model, state.position)[:, None],
        cache=PagedCache(pages, rows.table),
        method="hidden",
    )
    return cache.pages
