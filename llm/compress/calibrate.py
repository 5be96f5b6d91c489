# SPDX-License-Identifier: Apache-2.0
"""What a model's matrices read and its layers change, measured on calibration texts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError, DataError
from llm.generate.language_model import LanguageModel
from llm.models.block import Block
from llm.models.layers import Dense
from llm.models.transformer import Transformer, separate

ROWS = 4  # of tokens, read together


class Calibration:
    """Statistics of a decoder on texts, each measured when it is first asked for.

    Names are those of parameters whose layers are apart: "decoder/layers/0/attention/query".

    Args:
        lm: the model.
        texts: joined, and cut into rows; those that the variants are measured on are no good.
        length: tokens of a row.

    Raises:
        ConfigError: the model is no decoder.
        DataError: the texts have fewer tokens than a row.
    """

    def __init__(self, lm: LanguageModel, texts: Sequence[str], length: int):
        if lm.config.architecture != "decoder":
            raise ConfigError(
                f"The model is a {lm.config.architecture}.", "Calibration reads decoders only."
            )
        length = min(length, lm.config.max_length)
        ids = np.array([token for text in texts for token in lm.encode_prompt(text)], np.int32)
        if len(ids) < length:
            raise DataError(
                f"The calibration texts have {len(ids)} tokens, less than one row of {length}.",
                "Raise config.calibration.limit or lower config.calibration.length.",
            )
        self.lm = lm
        self.rows = ids[: len(ids) // length * length].reshape(-1, length)

    @functools.cached_property
    def moments(self) -> dict[str, np.ndarray]:
        """The mean of x xᵀ over tokens, float32 [inputs, inputs], of what each matrix reads.

        That many numbers are held for every matrix: for GPTQ only.
        """
        return self._mean(_moments)

    @functools.cached_property
    def squares(self) -> dict[str, np.ndarray]:
        """The mean of x² over tokens, float32 [inputs], of what each matrix reads."""
        return self._mean(_squares)

    @functools.cached_property
    def influence(self) -> np.ndarray:
        """How much each layer turns the residual state: 1 - cosine, float32 [layers].

        Called block influence by Men et al. 2024 (ShortGPT, arXiv:2403.03853, equation 2).
        """
        found = self._mean(_turns)
        return np.stack([found[f"decoder/layers/{i}"] for i in range(self.lm.config.n_layers)])

    def _mean(self, statistic: "Statistic") -> dict[str, np.ndarray]:
        config = self.lm.config
        model, params = Transformer(config), separate(self.lm.params)
        total: dict[str, np.ndarray] = {}
        for start in range(0, len(self.rows), ROWS):
            rows = self.rows[start : start + ROWS]
            blank = np.zeros((ROWS - len(rows), rows.shape[1]), np.int32)
            real = np.arange(ROWS) < len(rows)
            found = _observe(model, params, np.concatenate([rows, blank]), real, statistic)
            for name, value in found.items():
                total[name] = total.get(name, 0) + np.asarray(value)
        return {name: value / np.float32(self.rows.size) for name, value in total.items()}


# (module, its inputs, what it returned, weight of each row [B]) -> a sum over tokens, or None
Statistic = Callable[[nn.Module, Any, Any, jax.Array], jax.Array | None]


@functools.partial(jax.jit, static_argnames=("model", "statistic"))
def _observe(
    model: Transformer, params: Any, tokens: jax.Array, real: jax.Array, statistic: Statistic
) -> dict[str, jax.Array]:
    """Run the model; return {path of a module: its statistic, summed over the real rows}."""
    found = {}

    def watch(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        made = call(*args, **kwargs)
        if context.method_name == "__call__":
            value = statistic(context.module, args, made, real.astype(jnp.float32))
            if value is not None:
                found["/".join(context.module.path)] = value
        return made

    with nn.intercept_methods(watch):
        model.apply({"params": params}, tokens)
    return found


def _read(module: nn.Module, args: Any) -> jax.Array | None:  # [B, T, inputs]
    """Return what a matrix multiplies, its contracted axes made one."""
    if not isinstance(module, Dense):
        return None
    given, output = module.equation.split("->")
    left = given.split(",")[0]
    kept = sum(letter in output for letter in left)
    x = args[0].astype(jnp.float32)
    return x.reshape(*x.shape[:kept], -1)


def _moments(module: nn.Module, args: Any, made: Any, real: jax.Array) -> jax.Array | None:
    x = _read(module, args)
    return None if x is None else jnp.einsum("bti,btj,b->ij", x, x, real)


def _squares(module: nn.Module, args: Any, made: Any, real: jax.Array) -> jax.Array | None:
    x = _read(module, args)
    return None if x is None else jnp.einsum("bti,bti,b->i", x, x, real)


def _turns(module: nn.Module, args: Any, made: Any, real: jax.Array) -> jax.Array | None:
    if not isinstance(module, Block):
        return None
    before, after = (x.astype(jnp.float32) for x in (args[0][0], made[0][0]))
    sizes = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    cosine = jnp.sum(before * after, axis=-1) / jnp.maximum(sizes, 1e-12)
    return jnp.einsum("bt,b->", 1 - cosine, real)
