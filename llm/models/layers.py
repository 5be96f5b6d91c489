# SPDX-License-Identifier: Apache-2.0
"""The thin layer over Flax: parameters with logical axes, dense maps, norms, embeddings, dropout.

Letters: B batch, T length, D model, N heads, K kv-heads, H head size, F hidden, V vocabulary.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm.core.sharding import shard
from llm.models import lora, lowbit, narrow, quant, zigzag
from llm.models.config import TransformerConfig
from llm.models.products import contract

Array = jax.Array

# The standard deviation of a unit normal truncated to [-2, 2]: divided out, so that `init_std` is
# the standard deviation the weights really have.
_TRUNCATED_STD = 0.87962566103423978


def _truncated(std: float) -> Callable[..., Array]:
    return jax.nn.initializers.truncated_normal(std / _TRUNCATED_STD)


def _depth_scale(config: TransformerConfig, role: str) -> float:
    # Two residual sums per layer: keep the stream's variance independent of depth (GPT-2 §2.3).
    return (2 * config.n_layers) ** -0.5 if role == "residual" else 1.0


def _init_truncated(config: TransformerConfig, role: str, fan_in: int) -> Callable[..., Array]:
    return _truncated(config.init_std * _depth_scale(config, role))


def _init_normal(config: TransformerConfig, role: str, fan_in: int) -> Callable[..., Array]:
    return jax.nn.initializers.normal(config.init_std * _depth_scale(config, role))


def _init_fan_in(config: TransformerConfig, role: str, fan_in: int) -> Callable[..., Array]:
    std = config.init_std if role == "embed" else fan_in**-0.5
    return _truncated(std * _depth_scale(config, role))


# config.init -> initialiser of (config, role, fan_in); roles: "embed", "in", "residual".
#   truncated  N(0, init_std) cut at two deviations, residual outputs divided by sqrt(2 n_layers)
#   normal     the same without the cut (GPT-2)
#   fan_in     N(0, 1 / fan_in) cut at two deviations, embeddings N(0, init_std)
INITIALISERS: dict[str, Callable[[TransformerConfig, str, int], Callable[..., Array]]] = {
    "truncated": _init_truncated,
    "normal": _init_normal,
    "fan_in": _init_fan_in,
}


def param(
    module: Any, name: str, init: Callable[..., Array], shape: Sequence[int], axes: Sequence
) -> Array:
    """Create (or read) a parameter whose dimensions carry logical axis names; None = replicated.

    A quantised parameter in its place (see `llm.models.quant`) is read as the array it stands for.
    """
    dtype = jnp.dtype(module.config.param_dtype)
    adapter = module.config.adapter
    if adapter.quantizes(*module.path, name):
        stored = quant.initialiser(init, axes, adapter.base, adapter.block)
        return quant.materialize(module.param(name, stored, tuple(shape), dtype), dtype)
    boxed = nn.with_logical_partitioning(init, tuple(axes))
    return quant.materialize(module.param(name, boxed, tuple(shape), dtype), dtype)


_AXES = {
    "D": "embed",
    "N": "heads",
    "K": "kv_heads",
    "H": "head_dim",
    "F": "mlp",
    "V": "vocab",
    "C": None,
}


class Dense(nn.Module):
    """Contract with a kernel, `y = einsum(equation, x, kernel) + bias`.

    The equation is written with the fixed letters, "BTD,DNH->BTNH"; `sizes` gives the kernel's.
    The bias has the kernel's letters that reach the output. Where the config's adapter covers this
    map, its low-rank update is added; `keys` [B] are for that one's dropout.
    """

    config: TransformerConfig
    equation: str
    sizes: tuple[int, ...]
    bias: bool = False
    role: str = "in"

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        inputs, output = self.equation.split("->")
        letters = inputs.split(",")[1]
        size = dict(zip(letters, self.sizes, strict=True))
        fan_in = 1
        for letter in letters:
            fan_in *= 1 if letter in output else size[letter]
        init = INITIALISERS[self.config.init](self.config, self.role, fan_in)
        axes = [_AXES[letter] for letter in letters]
        if axes.count("embed") == 2:  # a square map: one axis is enough to shard it
            axes[-1] = None
        dtype = jnp.dtype(self.config.dtype)
        stored: Any = self.get_variable("params", "kernel")
        if narrow.is_narrow(stored):
            summed = sum(letter not in output for letter in letters)
            y = narrow.product(x, stored, summed, self.sizes[summed:]).astype(dtype)
        else:
            kernel = param(self, "kernel", init, self.sizes, axes)
            y = _contract(self.config.matmul, inputs, x.astype(dtype), kernel.astype(dtype))
            if self.config.adapter.covers(*self.path):
                y = self._adapt(x.astype(dtype), y, kernel, axes, keys)
        if self.bias:
            kept = [letter for letter in letters if letter in output]
            zeros = jax.nn.initializers.zeros
            bias = param(
                self, "bias", zeros, [size[c] for c in kept], [_bias_axis(c) for c in kept]
            )
            y = y + jnp.broadcast_to(bias.astype(dtype), y.shape)
        return checkpoint_name(y, self.name or "dense")  # see config.remat_names

    def _adapt(
        self, x: Array, y: Array, kernel: Array, axes: list[str | None], keys: Array | None
    ) -> Array:
        """Add the low-rank update, and rescale each output as DoRA does."""
        adapter = self.config.adapter
        maps = lora.maps(self.equation)
        size = dict(zip(maps.kernel, self.sizes, strict=True)) | {lora.RANK: adapter.rank}
        axis = dict(zip(maps.kernel, axes, strict=True)) | {lora.RANK: None}

        def create(name: str, init: Callable[..., Array], letters: str) -> Array:
            return param(self, name, init, [size[c] for c in letters], [axis[c] for c in letters])

        fan_in = kernel.size // max(1, math.prod(size[c] for c in maps.kept))
        a = create("lora_a", lora.uniform(fan_in), maps.a)
        b = create("lora_b", jax.nn.initializers.zeros, maps.b)
        if keys is not None and adapter.dropout:
            x = dropout(x, adapter.dropout, fold(keys, zlib.crc32(self.path[-1].encode())))
        update = lora.update(maps, x, a.astype(x.dtype), b.astype(x.dtype), adapter.scale)
        if adapter.name == "lora":
            return y + update
        norm = lora.column_norm(maps, kernel, a, b, adapter.scale)
        made = create("lora_m", lambda *_: norm.astype(kernel.dtype), maps.kept)
        ratio = made.astype(jnp.float32) / jax.lax.stop_gradient(norm)
        return (y + update) * jnp.broadcast_to(ratio.astype(y.dtype), y.shape)


def _contract(matmul: str, inputs: str, x: Array, kernel: Array) -> Array:
    # Not einsum: that contracts in alphabetic order, and "NHD" would be transposed at every use.
    left, right = inputs.split(",")
    shared = [letter for letter in right if letter in left]
    places = tuple(left.index(c) for c in shared), tuple(right.index(c) for c in shared)
    if matmul != "dtype":
        return lowbit.dot_general(matmul, x, kernel, (places, ((), ())))
    return contract(x, kernel, places)


def _bias_axis(letter: str) -> str | None:
    # Vectors of the model size are tiny and used whole: replicate them.
    return None if letter == "D" else _AXES[letter]


class Norm(nn.Module):
    """Normalise over the trailing `shape` axes in float32, then scale (and shift)."""

    config: TransformerConfig
    shape: tuple[int, ...]
    axes: tuple[str | None, ...] = (None,)
    kind: str = ""  # "" = config.norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kind = self.kind or self.config.norm
        over = tuple(range(-len(self.shape), 0))
        offset = 1.0 if self.config.norm_unit_offset else 0.0
        init = jax.nn.initializers.constant(1.0 - offset)
        scale = param(self, "scale", init, self.shape, self.axes).astype(jnp.float32) + offset
        y = x.astype(jnp.float32)
        if kind == "layernorm":
            y = y - jnp.mean(y, axis=over, keepdims=True)
        y = y * jax.lax.rsqrt(
            jnp.mean(jnp.square(y), axis=over, keepdims=True) + self.config.norm_eps
        )
        y = y * jnp.broadcast_to(scale, y.shape)
        if kind == "layernorm":
            bias = param(self, "bias", jax.nn.initializers.zeros, self.shape, self.axes)
            y = y + jnp.broadcast_to(bias.astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


class Embed(nn.Module):
    """Turn token ids (with positions and types) into the first residual state."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        init = INITIALISERS[c.init](c, "embed", c.d_model)
        self.embedding = param(
            self, "embedding", init, (c.vocab_size, c.d_model), ("vocab", "embed")
        )
        if c.position == "learned":
            rows = c.max_length + c.position_offset + c.adapter.virtual_tokens
            self.positions = param(self, "positions", init, (rows, c.d_model), (None, "embed"))
        if c.token_types:
            self.types = param(self, "types", init, (c.token_types, c.d_model), (None, "embed"))
        if c.embed_norm:
            self.norm = Norm(c, (c.d_model,))

    def __call__(  # [B, T], [B, T] -> [B, T, D]
        self, tokens: Array, positions: Array, token_types: Array | None = None
    ) -> Array:
        return self.dress(jnp.take(self.embedding, tokens, axis=0), positions, token_types)

    def dress(  # [B, T, D], [B, T] -> [B, T, D]
        self, x: Array, positions: Array, token_types: Array | None = None
    ) -> Array:
        """Scale embeddings and add positions and types."""
        from llm.models.positions import sinusoidal

        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = x.astype(dtype)
        if c.embed_scale != 1.0:
            x = x * jnp.asarray(c.embed_scale, dtype)
        if c.position == "learned":
            x = x + jnp.take(self.positions, positions + c.position_offset, axis=0).astype(dtype)
        if c.position == "sinusoidal":
            x = x + sinusoidal(positions, c.d_model).astype(dtype)
        if c.token_types:
            kinds = jnp.zeros_like(positions) if token_types is None else token_types
            x = x + jnp.take(self.types, kinds, axis=0).astype(dtype)
        if c.embed_norm:
            x = self.norm(x)
        return shard(x, "batch", "sequence", None)

    def attend(self, x: Array) -> Array:  # [B, T, D] -> [B, T, V] float32
        """Score every token by the inner product with its embedding."""
        dtype = jnp.dtype(self.config.dtype)
        if self.has_variable("params", "narrow"):
            stored: Any = self.get_variable("params", "narrow")
            return narrow.product(x, stored, 1, self.embedding.shape[:1])
        table = self.embedding.astype(dtype)
        return contract(x.astype(dtype), table, ((2,), (1,)), jnp.dtype(jnp.float32))


def fold(keys: Array, data: Any) -> Array:
    """Derive new per-example keys [B] from keys [B] and an integer (site or layer)."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def dropout(x: Array, rate: float, keys: Array | None) -> Array:  # [B, ...]
    """Zero a fraction of entries; each example's mask depends on its own key only."""
    if rate == 0.0 or keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    if zigzag.active():
        keep = zigzag.arrange(keep)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def embed_noise(x: Array, size: float, keys: Array | None, segments: Array | None) -> Array:
    """Add uniform noise of up to size / sqrt(L D) to embedded texts of length L (NEFTune).

    Lengths are those of the segments, so that packing changes no text's noise (arXiv:2310.05914,
    §3; implementations that take L as the padded length of the batch add less).
    """
    if size == 0.0 or keys is None:
        return x
    _, T, D = x.shape
    lengths = jnp.full(x.shape[:2], T)
    if segments is not None:
        count = jax.vmap(lambda s: jnp.bincount(s, length=T + 1)[s])
        lengths = count(segments)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (T, D), minval=-1.0, maxval=1.0))(keys)
    scale = size / jnp.sqrt(jnp.maximum(lengths, 1) * D)
    return (x + noise * scale[:, :, None]).astype(x.dtype)


def drop_path(x: Array, rate: Array | float, keys: Array | None) -> Array:  # [B, T, D]
    """Drop a sublayer's whole output per example (stochastic depth, arXiv:1603.09382)."""
    if keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, (1, 1)))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
