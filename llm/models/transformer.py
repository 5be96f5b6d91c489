# SPDX-License-Identifier: Apache-2.0
"""The transformer: decoder, encoder or encoder-decoder, from one block and one config.

Parameters after unboxing are nested dicts; every layer's are stacked on axis 0:
    embed/{embedding, positions, types, norm}
    decoder/{layers, final_norm, relative} and (or) encoder/{the same}, where layers are
        {attention, cross}/{query, key, value, output}/{kernel, bias}, mlp/{gate, up, down}/...,
        moe/{router, gate, up, down}_kernel, and {attention, cross, mlp}[_post]_norm/{scale, bias}
    lm_head/{kernel, bias, dense, norm} and pooler/{kernel, bias}, where the config has them
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm.core.sharding import shard
from llm.errors import ConfigError
from llm.models.block import Block, Buffers, Context, Layer
from llm.models.cache import Cache, plan_writes, write
from llm.models.config import TransformerConfig
from llm.models.layers import INITIALISERS, Dense, Embed, Norm, dropout, fold, param
from llm.models.mlp import ACTIVATIONS
from llm.models.positions import rope_tables

Array = jax.Array
Aux = dict[str, tuple[Array, Array]]  # name -> (sum, weight)

# config.remat -> what the backward pass keeps of a layer (None = recompute everything).
REMATS: dict[str, Any] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

_EMBED_SITE = 1 << 20  # apart from every layer index


def _layers(config: TransformerConfig, length: int, causal: bool, cross: bool) -> Any:
    """Build the scanned stack of blocks."""
    block: Any = Block
    if config.remat != "none":
        # Inside a scan nothing is merged across iterations, so CSE need not be prevented.
        block = nn.remat(block, prevent_cse=not config.scan_layers, policy=REMATS[config.remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=length,
        unroll=1 if config.scan_layers else length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, causal=causal, cross=cross)


def _per_layer(config: TransformerConfig, length: int) -> Layer:
    local = [config.is_local(i) for i in range(length)]
    return Layer(jnp.arange(length, dtype=jnp.int32), jnp.array(local))


class Relative(nn.Module):
    """Hold T5's relative-position table, shared by a stack's layers."""

    config: TransformerConfig

    @nn.compact
    def __call__(self) -> Array:  # [buckets, N]
        c = self.config
        init = INITIALISERS[c.init](c, "in", c.d_model)
        return param(self, "table", init, (c.relative_buckets, c.n_heads), (None, "heads"))


class Stack(nn.Module):
    """Run embedded states through all layers and the final norm."""

    config: TransformerConfig
    length: int
    causal: bool
    cross: bool = False

    def setup(self) -> None:
        c = self.config
        self.layers = _layers(c, self.length, self.causal, self.cross)
        if c.final_norm:
            self.final_norm = Norm(c, (c.d_model,))
        if c.position == "t5":
            self.relative = Relative(c)

    def __call__(self, x: Array, context: Context, buffers: Buffers) -> tuple[Array, Buffers, Aux]:
        c = self.config
        if c.position == "rope":
            context = context._replace(rope=rope_tables(c, context.positions))
            if c.rope_local_theta and c.window:
                context = context._replace(rope_local=rope_tables(c, context.positions, local=True))
        if c.position == "t5":
            context = context._replace(relative=self.relative())
        if context.keys is not None:
            x = dropout(x, c.dropout, fold(context.keys, _EMBED_SITE))
        (x, buffers), aux = self.layers((x, buffers), _per_layer(c, self.length), context)
        if c.final_norm:
            x = self.final_norm(x)
        # Each layer reports (sum, weight): their mean over layers, at one layer's weight.
        aux = {name: (jnp.mean(total), jnp.mean(weight)) for name, (total, weight) in aux.items()}
        return x, buffers, aux


class Head(nn.Module):
    """Turn final states into logits [B, T, V], float32; tied to the embedding or not."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array, embed: Embed) -> Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if c.head == "mlm":  # BERT: one more dense layer and norm before the vocabulary
            x = Dense(c, "BTD,DC->BTC", (c.d_model, c.d_model), True, name="dense")(x)
            x = Norm(c, (c.d_model,), name="norm")(ACTIVATIONS[c.activation](x))
        if c.tied_embeddings:
            logits = embed.attend(x)
        else:
            init = INITIALISERS[c.init](c, "in", c.d_model)
            shape = (c.d_model, c.vocab_size)
            kernel = param(self, "kernel", init, shape, ("embed", "vocab"))
            logits = jnp.einsum(
                "BTD,DV->BTV",
                x.astype(dtype),
                kernel.astype(dtype),
                preferred_element_type=jnp.float32,
            )
        if c.logit_scale != 1.0:
            logits = logits * c.logit_scale
        if c.head_bias:
            zeros = jax.nn.initializers.zeros
            bias = param(self, "bias", zeros, (c.vocab_size,), ("vocab",))
            logits = logits + bias.astype(jnp.float32)[None, None]
        if c.logit_softcap:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        return shard(logits, "batch", "length", "vocab")


class Transformer(nn.Module):
    """A language model.

    `model.apply({"params": p}, tokens [B, T], ...)` returns logits [B, T, V] in float32, or
    (logits, cache) when a cache is given. `method="hidden"`, `"hidden_and_aux"`, `"head"`,
    `"encode"` and `"pool"` reach the parts.

    Arguments common to all of them:
        segments: [B, T] int32; documents 1.., 0 = padding; tokens see their own segment only.
        positions: [B, T] int32; default 0.. (continuing each row with a cache).
        cache: see `llm.models.cache`; one document per row.
        dropout_keys: PRNG keys [B], one per example; None = no dropout.
        prefix: [B, T] bool; tokens that their whole segment may see (prefix-LM).
        encoder_tokens, encoder_segments, encoder_positions: [B, C], for encoder-decoders; or
        encoded: [B, C, D] from `method="encode"`; neither when the cache holds them already.
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config.validate()
        self.embed = Embed(c)
        if c.architecture != "decoder":
            layers = c.n_encoder_layers or c.n_layers
            self.encoder = Stack(c, layers, causal=False)
        if c.architecture != "encoder":
            cross = c.architecture == "encoder_decoder"
            self.decoder = Stack(c, c.n_layers, causal=True, cross=cross)
        self.lm_head = Head(c)
        if c.pooler:
            self.pooler = Dense(c, "BD,DC->BC", (c.d_model, c.d_model), True)

    def __call__(self, tokens: Array, *args: Any, **inputs: Any) -> Any:
        """Return logits [B, T, V] float32, or (logits, cache) with a cache."""
        hidden, cache, _ = self._run(tokens, *args, **inputs)
        if self.is_initializing() and self.config.pooler:
            self._pool(hidden)
        logits = self.head(hidden)
        return logits if cache is None else (logits, cache)

    def hidden(self, tokens: Array, *args: Any, **inputs: Any) -> Any:
        """Return final-norm states [B, T, D], or (states, cache) with a cache."""
        hidden, cache, _ = self._run(tokens, *args, **inputs)
        return hidden if cache is None else (hidden, cache)

    def hidden_and_aux(self, tokens: Array, *args: Any, **inputs: Any) -> tuple[Array, Aux]:
        """Return final-norm states and the auxiliary losses and figures, {} without experts."""
        hidden, _, aux = self._run(tokens, *args, **inputs)
        return hidden, aux

    def head(self, hidden: Array) -> Array:
        """Turn states [B, T, D] into logits [B, T, V] float32."""
        return self.lm_head(hidden, self.embed)

    def pool(self, tokens: Array, *args: Any, **inputs: Any) -> Array:
        """Return BERT's pooled first state [B, D]."""
        return self._pool(self._run(tokens, *args, **inputs)[0])

    def _pool(self, hidden: Array) -> Array:
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def encode(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        dropout_keys: Array | None = None,
        token_types: Array | None = None,
    ) -> Array:
        """Return the encoder's final states [B, T, D]."""
        positions = _default_positions(tokens) if positions is None else positions
        context = Context(positions, segments, keys=dropout_keys)
        x = self.embed(tokens, positions, token_types)
        return self.encoder(x, context, {})[0]

    def _run(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        cache: Cache | None = None,
        dropout_keys: Array | None = None,
        *,
        prefix: Array | None = None,
        token_types: Array | None = None,
        encoder_tokens: Array | None = None,
        encoder_segments: Array | None = None,
        encoder_positions: Array | None = None,
        encoded: Array | None = None,
    ) -> tuple[Array, Cache | None, Aux]:
        c = self.config
        c.check_length(tokens.shape[1])
        slots, written = None, cache
        if cache is not None:
            slots, following, lengths = plan_writes(cache, segments, tokens.shape[1])
            positions = following if positions is None else positions
            written = cache._replace(
                positions=write(cache.positions, positions, slots), lengths=lengths
            )
        positions = _default_positions(tokens) if positions is None else positions
        context = Context(positions, segments, prefix, dropout_keys, slots=slots)
        if written is not None:
            context = context._replace(k_positions=written.positions, k_segments=written.segments())
        if c.architecture == "encoder_decoder":
            if encoded is None and self.is_initializing() and encoder_tokens is None:
                encoder_tokens = tokens
            if encoded is None and encoder_tokens is not None:
                encoded = self.encode(
                    encoder_tokens, encoder_segments, encoder_positions, dropout_keys
                )
            context, written = _cross(context, written, encoded, encoder_segments)
        x = self.embed(tokens, positions, token_types)
        stack = self.encoder if c.architecture == "encoder" else self.decoder
        x, buffers, aux = stack(x, context, _buffers(written))
        return x, None if written is None else written._replace(**buffers), aux


def _default_positions(tokens: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


def _buffers(cache: Cache | None) -> Buffers:
    if cache is None:
        return {}
    arrays = {"k": cache.k, "v": cache.v, "cross_k": cache.cross_k, "cross_v": cache.cross_v}
    return {name: array for name, array in arrays.items() if array is not None}


def _cross(
    context: Context, cache: Cache | None, encoded: Array | None, segments: Array | None
) -> tuple[Context, Cache | None]:
    """Attach the encoder's output, or what the cache remembers of it."""
    if encoded is None:
        if cache is None:
            raise ConfigError(
                "An encoder-decoder needs encoder_tokens, encoded states or a filled cache.",
                "Pass encoder_tokens=... to the model.",
            )
        return context._replace(encoded_segments=cache.cross_segments), cache
    if cache is not None:
        B, C = encoded.shape[:2]
        kept = jnp.ones((B, C), jnp.int32) if segments is None else segments
        shape = (*cache.k.shape[:2], C, *cache.k.shape[3:])
        empty = jnp.zeros(shape, cache.k.dtype)
        cache = cache._replace(cross_k=empty, cross_v=empty, cross_segments=kept)
    return context._replace(encoded=encoded, encoded_segments=segments), cache
