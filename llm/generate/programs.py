# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of decoding: read a piece of a prompt, and choose tokens.

The device keeps nothing but the pages of keys and values; the host sends what else a row needs, so
a row may be any request at any call. Shapes are few: prompts are read in pieces of SHAPES tokens,
rows come in powers of two, and a step of few rows is widened by speculation to at least WIDE
tokens. Every dense layer therefore sees WIDE tokens or more; from there on XLA's CPU backend gives
a token the same bits whatever shares its step, so that a text does not depend on its company.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError
from llm.generate import sampling
from llm.generate.buckets import check_decodes, count_program, layout, parts
from llm.generate.guessing import (
    Rows,
    State,
    draft_narrow,
    draft_small,
    follow_text,
    look_up,
    may_guess,
    within,
)
from llm.models.narrow import narrowed
from llm.models.paged import PAGE, PagedCache, Pages, constrain, init_pages
from llm.models.transformer import separate

STEPS = 16  # of one decode call, at most
WIDE = 8  # tokens that a step works on, at least
SHAPES = (16, PAGE, 4 * PAGE)  # tokens of a piece of a prompt
_SEPARATE = 4 << 30  # bytes of parameters that are worth holding twice, on a CPU
_NARROW = 64 << 20  # bytes of parameters that take longer to read than to compute with


class Chosen(NamedTuple):
    """New tokens: the first `given` of each row of `tokens` and `logprobs`."""

    tokens: np.ndarray  # [R, STEPS * T]
    logprobs: np.ndarray
    given: np.ndarray  # [R]
    steps: int  # passes through the model


class Device(Protocol):
    """What the engine drives; `Programs`, or a script in a test."""

    def clear(self) -> None: ...
    def grow(self, pages: int) -> None: ...
    def read(self, tokens: np.ndarray, start: int, real: int, table: np.ndarray) -> None: ...
    def decode(self, rows: Rows, steps: int) -> Chosen: ...


class Part(NamedTuple):
    """A model with the parameters its programs take."""

    model: Any
    params: Any
    dtype: str  # of its pages

    @classmethod
    def of(cls, model: Any, params: Any, dtype: str, mesh: Any) -> "Part":
        """Prepare parameters: on a CPU every layer's apart (see `separate`).

        Not where an adapter is in force: it finds its maps by the paths of stacked layers.
        """
        size = sum(x.nbytes for x in jax.tree.leaves(params))
        plain = model.config.adapter.name == "none" and mesh is None
        if plain and jax.default_backend() == "cpu" and size <= _SEPARATE:
            params = separate(params)
        return cls(model, params, dtype)


class Programs:
    """Runs one model, and where given a small one that guesses for it.

    Args:
        model, params: the decoder.
        mesh: over which the parameters are laid, or None.
        dtype: of the pages: "" = the compute dtype, or "int8".
        draft: (model, params) of a decoder with the same vocabulary, or None: guesses are then
            looked up in the text itself.
        narrow: whether without a draft the model's own weights in 8 bits guess too; None = where
            that pays.

    Raises:
        ConfigError: `narrow` asked for with a mesh or an adapter.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        mesh: Any = None,
        dtype: str = "",
        draft: Any = None,
        narrow: bool | None = False,
    ):
        check_decodes(mesh)
        self._mesh = mesh
        self._parts = [Part.of(model, params, dtype, mesh)]
        self._narrow = None  # made when first used
        self._narrows = draft is None and _narrows(self._parts[0], mesh, narrow)
        if draft is not None:
            self._parts.append(Part.of(draft[0], draft[1], "", mesh))
        self._pages: list[Pages] = []

    def clear(self) -> None:
        """Drop the pool."""
        self._pages = []

    def grow(self, pages: int) -> None:
        """Make the pool this large; what it holds is kept."""
        with layout(self._mesh):
            new = [_new_pages(p.model.config, pages, p.dtype) for p in self._parts]
            if self._pages:
                new = [_moved(was, fresh) for was, fresh in zip(self._pages, new, strict=True)]
            self._pages = new

    def read(self, tokens: np.ndarray, start: int, real: int, table: np.ndarray) -> None:
        """Put a piece of a prompt into its pages.

        Args:
            tokens: [T], T of SHAPES; the first `real` count.
            start: position of the first.
            table: [n] the text's pages.
        """
        rows = parts(self._mesh)  # a mesh that splits the batch gets a row for every part
        real_rows = np.where(np.arange(rows) == 0, real, 0).astype(np.int32)
        tokens, table = (np.tile(x[None], (rows, 1)) for x in (tokens, table))
        with layout(self._mesh):
            for i, part in enumerate(self._parts):
                self._pages[i] = _read(
                    part.model, part.params, self._pages[i], tokens, start, real_rows, table
                )

    def score(
        self, tokens: np.ndarray, start: int, real: int, table: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a piece of a text; return log-probability and "is the argmax" of targets [T].

        What follows a position cannot matter to it, so `real` may end anywhere.
        """
        rows = parts(self._mesh)
        real_rows = np.where(np.arange(rows) == 0, real, 0).astype(np.int32)
        tokens, table = (np.tile(x[None], (rows, 1)) for x in (tokens, table))
        part = self._parts[0]
        with layout(self._mesh):
            self._pages[0], *values = _score(
                part.model, part.params, self._pages[0], tokens, start, real_rows, table, targets
            )
        logprobs, greedy = jax.device_get(values)
        return logprobs, greedy

    def decode(self, rows: Rows, steps: int) -> Chosen:
        """Choose tokens for every row, in up to `steps` passes."""
        width = max(1, WIDE // len(rows.token))
        models = tuple(part.model for part in self._parts)
        params = tuple(part.params for part in self._parts)
        if width > 1 and self._narrows:
            if self._narrow is None:
                self._narrow = narrowed(self._parts[0].params)
            models, params = 2 * models, (*params, self._narrow)
        with layout(self._mesh):
            pages, *chosen = _decode(models, params, tuple(self._pages), rows, steps, width)
        self._pages = list(pages)
        tokens, logprobs, count, taken = jax.device_get(chosen)
        return Chosen(tokens, logprobs, count, int(taken))


def _narrows(part: Part, mesh: Any, wanted: bool | None) -> bool:
    """Tell whether the model's weights in 8 bits guess: on a CPU, where it is large and dense."""
    c = part.model.config
    possible = mesh is None and c.adapter.name == "none"
    if wanted and not possible:
        raise ConfigError(
            "Guessing with the model's own weights in 8 bits needs one device and no adapter.",
            "Merge the adapter and load the model without a mesh, or leave narrow at None.",
        )
    if wanted is not None:
        return wanted
    size = sum(x.nbytes for x in jax.tree.leaves(part.params))
    fits = not c.n_experts and _NARROW <= size <= _SEPARATE
    return possible and fits and jax.default_backend() == "cpu"


@functools.partial(jax.jit, static_argnames=("config", "count", "dtype"))
def _new_pages(config: Any, count: int, dtype: str) -> Pages:
    count_program("pages")
    return init_pages(config, count, dtype)


@functools.partial(jax.jit, donate_argnames=("new",))
def _moved(old: Pages, new: Pages) -> Pages:
    return jax.tree.map(lambda a, b: b.at[:, : a.shape[1]].set(a), old, new)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("pages",))
def _read(model: Any, params: Any, pages: Pages, *place: jax.Array) -> Pages:
    count_program("read")
    return _put(model, params, pages, *place)[1]


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("pages",))
def _score(
    model: Any,
    params: Any,
    pages: Pages,
    tokens: jax.Array,
    start: jax.Array,
    real: jax.Array,
    table: jax.Array,
    targets: jax.Array,  # [T]
) -> tuple[Pages, jax.Array, jax.Array]:
    count_program("score_pages")
    hidden, pages = _put(model, params, pages, tokens, start, real, table)
    logits = model.apply({"params": params}, hidden, method="head")[0]
    logprobs = sampling.token_logprob(logits, targets)
    return pages, logprobs, jnp.argmax(logits, axis=-1) == targets


def _put(
    model: Any,
    params: Any,
    pages: Pages,
    tokens: jax.Array,  # [B, T]
    start: jax.Array,
    real: jax.Array,  # [B]
    table: jax.Array,  # [B, n]
) -> tuple[jax.Array, Pages]:
    """Run tokens from `start` on, of each row the first `real`; return states and pages."""
    steps = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    hidden, cache = model.apply(
        {"params": params},
        tokens,
        segments=(steps < real[:, None]).astype(jnp.int32),
        positions=within(model, start + steps),
        cache=PagedCache(pages, table),
        method="hidden",
    )
    return hidden, constrain(cache.pages)


@functools.partial(jax.jit, static_argnames=("models", "width"), donate_argnames=("pages",))
def _decode(
    models: tuple[Any, ...],
    params: tuple[Any, ...],
    pages: tuple[Pages, ...],
    rows: Rows,
    steps: jax.Array,
    width: int,
) -> tuple[Any, ...]:
    """Choose tokens until `steps` passes are done or no row has any left; see `Rows`, `Chosen`.

    Args:
        models, params: the decoder, and what guesses for it if anything does.
        pages: of the decoder, and of a draft; the decoder's own narrow weights use its pages.
    """
    count_program("decode")
    R = rows.token.shape[0]
    state = State(
        pages,
        rows.token,
        rows.position,
        rows.left,
        rows.history,
        _seen(rows, models[0].config.vocab_size),
        jnp.zeros((R, STEPS * width), jnp.int32),
        jnp.zeros((R, STEPS * width), jnp.float32),
        jnp.zeros(R, jnp.int32),
    )

    def more(carry: tuple[jax.Array, State]) -> jax.Array:
        return (carry[0] < steps) & jnp.any(carry[1].left > 0)

    def take(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        return carry[0] + 1, _step(models, params, carry[1], rows, width)

    taken, state = jax.lax.while_loop(more, take, (jnp.int32(0), state))
    pages = tuple(map(constrain, state.pages))
    return pages, state.tokens, state.logprobs, state.given, taken


def _seen(rows: Rows, vocabulary: int) -> jax.Array:
    """Return which tokens [R, V] each text holds, where a row's penalty needs it."""

    def mark() -> jax.Array:
        C = rows.history.shape[1]
        real = jnp.arange(C)[None] <= rows.position[:, None]
        line = jnp.arange(len(rows.token))[:, None]
        return jnp.zeros((len(rows.token), vocabulary), bool).at[line, rows.history].max(real)

    none = jnp.zeros((len(rows.token), vocabulary), bool)
    return jax.lax.cond(jnp.any(rows.settings.repetition_penalty != 1), mark, lambda: none)


def _step(
    models: tuple[Any, ...], params: tuple[Any, ...], state: State, rows: Rows, width: int
) -> State:
    """Run the current token and width - 1 guesses; keep the guesses that would have been chosen.

    Each token is chosen from the model's own logits with the key of its row and position, whatever
    was guessed: the text is the one that steps of a single token give.
    """
    R, T = len(state.token), width
    pages = list(state.pages)
    if T == 1:
        guesses = jnp.zeros((R, 0), jnp.int32)
    elif len(pages) > 1:
        guesses, pages[1] = draft_small(models[1], params[1], pages[1], state, rows, T - 1)
    else:
        guesses, known = look_up(state.history, state.position, T - 1)
        if len(models) > 1:
            guesses, pages[0] = draft_narrow(
                models[1], params[1], pages[0], state, rows, guesses, known
            )
    inputs = jnp.concatenate([state.token[:, None], guesses], axis=1)
    ahead = jnp.arange(T, dtype=jnp.int32)[None]
    usable = ahead < jnp.where(may_guess(rows), state.left, jnp.minimum(state.left, 1))[:, None]
    hidden, cache = models[0].apply(
        {"params": params[0]},
        inputs,
        segments=usable.astype(jnp.int32),
        positions=within(models[0], state.position[:, None] + ahead),
        cache=PagedCache(pages[0], rows.table),
        method="hidden",
    )
    pages[0] = cache.pages
    if len(pages) > 1 and T == 1:
        pages[1] = follow_text(models[1], params[1], pages[1], state, rows)
    logits = models[0].apply({"params": params[0]}, hidden, method="head").reshape(R * T, -1)
    chosen, logprobs = sampling.sample(
        logits,
        jax.tree.map(lambda x: jnp.repeat(x, T, axis=0), rows.settings),
        (state.position[:, None] + ahead + 1).reshape(-1),
        jnp.repeat(state.seen, T, axis=0),
    )
    chosen, logprobs = chosen.reshape(R, T), logprobs.reshape(R, T)
    right = jnp.cumprod(jnp.pad(guesses == chosen[:, :-1], ((0, 0), (1, 0)), constant_values=1), 1)
    kept = (right > 0) & usable
    stops = jnp.any(chosen[:, :, None] == rows.stop_ids[:, None, :], axis=-1)
    earlier = jnp.cumsum(stops, axis=1) - stops
    kept = kept & (earlier == 0)
    return _advance(state._replace(pages=tuple(pages)), chosen, logprobs, kept, stops & kept)


def _advance(
    state: State, chosen: jax.Array, logprobs: jax.Array, kept: jax.Array, stops: jax.Array
) -> State:
    """Note the chosen tokens [R, T] that are kept (each row's first ones)."""
    R, T = chosen.shape
    line, ahead = jnp.arange(R)[:, None], jnp.arange(T, dtype=jnp.int32)[None]
    count = jnp.sum(kept, axis=1, dtype=jnp.int32)
    at = jnp.where(kept, state.given[:, None] + ahead, state.tokens.shape[1])
    place = jnp.where(kept, state.position[:, None] + 1 + ahead, state.history.shape[1])
    last = jnp.take_along_axis(chosen, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    return state._replace(
        token=jnp.where(count > 0, last, state.token),
        position=state.position + count,
        left=jnp.where(jnp.any(stops, axis=1), 0, state.left - count),
        history=state.history.at[line, place].set(chosen, mode="drop"),
        seen=state.seen.at[line, chosen].max(kept),
        tokens=state.tokens.at[line, at].set(chosen, mode="drop"),
        logprobs=state.logprobs.at[line, at].set(logprobs, mode="drop"),
        given=state.given + count,
    )
