# SPDX-License-Identifier: Apache-2.0
"""Choose the next token: pure transforms of logits [B, V] with one setting per row.

Every setting is an array [B], so one compiled program serves requests that differ, and every row
draws from its own key, so a row's token never depends on its neighbours.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError

Array = jax.Array


class Settings(NamedTuple):
    """How one request samples; the defaults are greedy and change nothing.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    logit_bias adds to the logits of the token ids it names.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def validate(self) -> "Settings":
        """Return self, or raise ConfigError naming the value out of range."""
        _check("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _check(
            "repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"
        )
        return self


class Rows(NamedTuple):
    """The settings of a batch, as arrays; see `Settings`.

    bias_ids [B, N] hold token ids, those at or past the vocabulary are ignored.
    """

    temperature: Array  # [B] float32
    top_k: Array  # [B] int32
    top_p: Array  # [B] float32
    min_p: Array  # [B] float32
    repetition_penalty: Array  # [B] float32
    seed: Array  # [B] uint32
    bias_ids: Array  # [B, N] int32
    bias: Array  # [B, N] float32


def _check(name: str, value: float, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name}={value} is out of range.", f"Give {name} a value {wanted}.")


def rows(settings: Sequence[Settings], biases: int = 0) -> Rows:
    """Stack the settings of B requests; N is at least `biases`, else a power of two or 0."""
    widest = max((len(s.logit_bias) for s in settings), default=0)
    width = max(biases, 1 << (widest - 1).bit_length() if widest else 0)
    ids = np.full((len(settings), width), np.iinfo(np.int32).max, np.int32)
    bias = np.zeros((len(settings), width), np.float32)
    for row, one in enumerate(settings):
        for column, (token, value) in enumerate(one.logit_bias):
            ids[row, column], bias[row, column] = token, value
    return Rows(
        temperature=jnp.asarray([s.temperature for s in settings], jnp.float32),
        top_k=jnp.asarray([s.top_k for s in settings], jnp.int32),
        top_p=jnp.asarray([s.top_p for s in settings], jnp.float32),
        min_p=jnp.asarray([s.min_p for s in settings], jnp.float32),
        repetition_penalty=jnp.asarray([s.repetition_penalty for s in settings], jnp.float32),
        seed=jnp.asarray([s.seed % 2**32 for s in settings], jnp.uint32),
        bias_ids=jnp.asarray(ids),
        bias=jnp.asarray(bias),
    )


def apply_bias(logits: Array, ids: Array, bias: Array) -> Array:
    """Add bias [B, N] to the logits [B, V] of token ids [B, N]."""
    if ids.shape[1] == 0:
        return logits
    line = jnp.arange(logits.shape[0])[:, None]
    return logits.at[line, ids].add(bias, mode="drop")


def apply_repetition_penalty(logits: Array, seen: Array, penalty: Array) -> Array:
    """Make tokens already seen less likely: divide positive logits, multiply negative ones.

    Args:
        logits: [B, V].
        seen: bool [B, V], tokens of the prompt and of the text so far.
        penalty: [B]; 1 changes nothing (Keskar et al. 2019, with the sign handled).
    """
    scale = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / scale, logits * scale), logits)


def apply_temperature(logits: Array, temperature: Array) -> Array:
    """Divide by the temperature [B]; rows at 0 (greedy) stay as they are."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]


def keep_top(logits: Array, top_k: Array, top_p: Array) -> Array:
    """Mask to -inf all but the k likeliest tokens, then all but their nucleus.

    The nucleus is the smallest set of likeliest tokens whose probability (among the k) reaches p
    (Holtzman et al. 2020). Of equal logits the lower token ids are kept first.

    Args:
        logits: [B, V].
        top_k: [B]; 0 is off.
        top_p: [B]; 1 is off.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None, :]
    k = jnp.where(top_k > 0, top_k, logits.shape[-1])[:, None]
    p = jnp.where(top_p < 1, top_p, jnp.inf)[:, None]
    ranked = jnp.where(rank < k, ranked, -jnp.inf)
    mass = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass
    keep_ranked = (rank < k) & ((before < p) | (rank == 0))
    line = jnp.arange(logits.shape[0])[:, None]
    keep = jnp.zeros(logits.shape, bool).at[line, order].set(keep_ranked)
    return jnp.where(keep, logits, -jnp.inf)


def keep_min_p(logits: Array, min_p: Array) -> Array:
    """Mask tokens less likely than min_p [B] times the likeliest one (Nguyen et al. 2024)."""
    floor = jnp.max(logits, axis=-1) + jnp.log(min_p)
    return jnp.where(logits >= floor[:, None], logits, -jnp.inf)


def transform(logits: Array, settings: Rows, seen: Array | None = None) -> Array:
    """Turn model logits [B, V] into the logits that are sampled, in the usual order.

    Bias, repetition penalty, temperature, top-k, top-p, min-p. Work that no row asks for is
    skipped at run time, without another program.
    """
    logits = apply_bias(logits.astype(jnp.float32), settings.bias_ids, settings.bias)
    if seen is not None:
        logits = apply_repetition_penalty(logits, seen, settings.repetition_penalty)
    logits = apply_temperature(logits, settings.temperature)
    sorts = jnp.any((settings.temperature > 0) & ((settings.top_k > 0) | (settings.top_p < 1)))
    logits = jax.lax.cond(
        sorts, keep_top, lambda x, k, p: x, logits, settings.top_k, settings.top_p
    )
    return keep_min_p(logits, settings.min_p)


def row_keys(seed: Array, position: Array) -> Array:
    """Return the keys [B] of the draws at positions [B] of requests with these seeds [B]."""
    return jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(seed, position)


def token_logprob(logits: Array, tokens: Array) -> Array:
    """Return log softmax(logits [..., V]) at tokens [...], without forming the whole of it."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def sample(
    logits: Array, settings: Rows, position: Array, seen: Array | None = None
) -> tuple[Array, Array]:
    """Choose one token per row.

    Args:
        logits: [B, V] of the model.
        settings: of each row.
        position: int32 [B], the place of the chosen token in its text; with the row's seed it
            makes the key of the draw.
        seen: bool [B, V] for the repetition penalty, or None.

    Returns:
        Tokens int32 [B], and their log-probabilities [B] under the unmodified model.
    """
    logits = logits.astype(jnp.float32)
    final = transform(logits, settings, seen)
    greedy = jnp.argmax(final, axis=-1)

    def draw() -> Array:
        keys = row_keys(settings.seed, position)
        return jax.vmap(jax.random.categorical)(keys, final)

    drawn = jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: greedy)
    tokens = jnp.where(settings.temperature > 0, drawn, greedy).astype(jnp.int32)
    return tokens, token_logprob(logits, tokens)


def bias_of(logit_bias: Mapping[int, float] | None) -> tuple[tuple[int, float], ...]:
    """Return a logit bias mapping as the sorted pairs that `Settings` holds."""
    return tuple(sorted((int(token), float(value)) for token, value in (logit_bias or {}).items()))
