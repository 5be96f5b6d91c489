# SPDX-License-Identifier: Apache-2.0
"""The transformer: decoder, encoder or encoder-decoder, from one block and one config.

Parameters after unboxing are nested dicts; every layer's are stacked on axis 0:
    embed/{embedding, positions, types, norm}
    decoder/{layers, final_norm, relative} and (or) encoder/{the same}, where layers are
        {attention, cross}/{query, key, value, output}/{kernel, bias}, mlp/{gate, up, down}/...,
        moe/{router, gate, up, down}_kernel, and {attention, cross, mlp}[_post]_norm/{scale, bias}
    lm_head/{kernel, bias, dense, norm}, {pooler, classifier, value_head}/{kernel, bias} and the
        parameters of `llm.models.adapters`, where the config has them
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm.core.sharding import current_layout, shard
from llm.errors import ConfigError
from llm.models import moe, narrow, pipeline, remat, zigzag
from llm.models.block import Block, Buffers, Context, Layer
from llm.models.cache import Cache, plan_writes, write
from llm.models.config import TransformerConfig
from llm.models.layers import INITIALISERS, Dense, Embed, Norm, dropout, embed_noise, fold, param
from llm.models.mlp import ACTIVATIONS
from llm.models.paged import PagedCache, Place
from llm.models.positions import rope_tables
from llm.models.products import contract

Array = jax.Array
Aux = dict[str, tuple[Array, Array]]  # name -> (sum, weight)

_EMBED_SITE = 1 << 20  # apart from every layer index
_NOISE_SITE = _EMBED_SITE + 1


def _layers(config: TransformerConfig, length: int, causal: bool, cross: bool) -> Any:
    """Build the scanned stack of blocks."""
    block: Any = Block
    if config.remat != "none":
        # Inside a scan nothing is merged across iterations, so CSE need not be prevented.
        block = nn.remat(block, prevent_cse=not config.scan_layers, policy=remat.kept(config))
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=length,
        unroll=1 if config.scan_layers else length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, causal=causal, cross=cross)


def _auxiliary(sums: dict[str, Array], config: TransformerConfig) -> Aux:
    """Return the mean over layers of each layer's losses and figures, at one layer's weight."""
    if not sums:
        return {}
    each = jax.vmap(lambda layer: moe.auxiliary(layer, config))(sums)
    return {name: (jnp.mean(total), jnp.mean(weight)) for name, (total, weight) in each.items()}


def _per_layer(config: TransformerConfig, length: int) -> Layer:
    local = [config.is_local(i) for i in range(length)]
    return Layer(jnp.arange(length, dtype=jnp.int32), jnp.array(local))


class Separate(nn.Module):
    """Run layers whose parameters are separate arrays, layers/0, layers/1, ...: see `separate`."""

    config: TransformerConfig
    length: int
    causal: bool
    cross: bool

    @nn.compact
    def __call__(
        self, carry: Any, per_layer: Layer, context: Context
    ) -> tuple[Any, dict[str, Array]]:
        auxes = []
        for i in range(self.length):
            block = Block(self.config, self.causal, self.cross, name=str(i))
            carry, aux = block(carry, jax.tree.map(lambda x, i=i: x[i], per_layer), context)
            auxes.append(aux)
        return carry, jax.tree.map(lambda *each: jnp.stack(each), *auxes)


def separate(params: Any) -> Any:
    """Unstack every layer's parameters, which the model then runs one after the other.

    A scan copies each layer's weights out of their stack at every step; decoding one token on a
    CPU takes a third less time without.
    """

    def stack(tree: Any) -> Any:
        layers = tree["layers"]
        count = jax.tree.leaves(layers)[0].shape[0]
        each = {str(i): jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)}
        return {**tree, "layers": each}

    stacks = ("decoder", "encoder")
    return {name: stack(tree) if name in stacks else tree for name, tree in params.items()}


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
        if "0" in self.variables.get("params", {}).get("layers", {}):
            self.layers = Separate(c, self.length, self.causal, self.cross)
        else:
            self.layers = _layers(c, self.length, self.causal, self.cross)
        if c.final_norm:
            self.final_norm = Norm(c, (c.d_model,))
        if c.position == "t5":
            self.relative = Relative(c)

    def __call__(
        self,
        x: Array,
        context: Context,
        buffers: Buffers,
        prefix: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Buffers, Aux]:
        """Run; `prefix` are keys and values [L, P, K, H] that come before every layer's own."""
        c = self.config
        if c.position == "rope":
            context = context._replace(rope=rope_tables(c, context.positions))
            if c.rope_local_theta and c.window:
                context = context._replace(rope_local=rope_tables(c, context.positions, local=True))
        if c.position == "t5":
            context = context._replace(relative=self.relative())
        if context.keys is not None:
            x = dropout(x, c.dropout, fold(context.keys, _EMBED_SITE))
        per_layer = _per_layer(c, self.length)._replace(prefix=prefix)
        plan = None
        if not buffers and not self.is_initializing():
            plan = pipeline.schedule(current_layout(), self.length, x.shape[0])
        if plan is None:
            (x, buffers), aux = self.layers((x, buffers), per_layer, context)
        else:
            block = pipeline.Nested(c, self.causal, self.cross, (*self.path, "layers"), parent=None)
            params = self.variables["params"]["layers"]
            x, aux = pipeline.layers(plan, block, remat.kept, params, per_layer, x, context)
        if c.final_norm:
            x = self.final_norm(x)
        return x, buffers, _auxiliary(aux, c)


class Head(nn.Module):
    """Turn final states into logits [B, T, V], float32; tied to the embedding or not."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array, embed: Embed) -> Array:
        c = self.config
        if c.head == "mlm":  # BERT: one more dense layer and norm before the vocabulary
            x = Dense(c, "BTD,DC->BTC", (c.d_model, c.d_model), True, name="dense")(x)
            x = Norm(c, (c.d_model,), name="norm")(ACTIVATIONS[c.activation](x))
        if c.tied_embeddings:
            logits = embed.attend(x)
        else:
            logits = self._untied(x)
        if c.logit_scale != 1.0:
            logits = logits * c.logit_scale
        if c.head_bias:
            zeros = jax.nn.initializers.zeros
            bias = param(self, "bias", zeros, (c.vocab_size,), ("vocab",))
            logits = logits + bias.astype(jnp.float32)[None, None]
        if c.logit_softcap:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        return shard(logits, "batch", "length", "vocab")

    def _untied(self, x: Array) -> Array:  # [B, T, D] -> [B, T, V]
        c = self.config
        shape = (c.d_model, c.vocab_size)
        stored: Any = self.get_variable("params", "kernel")
        if narrow.is_narrow(stored):
            return narrow.product(x, stored, 1, shape[1:])
        dtype = jnp.dtype(c.dtype)
        init = INITIALISERS[c.init](c, "in", c.d_model)
        kernel = param(self, "kernel", init, shape, ("embed", "vocab"))
        float32 = jnp.dtype(jnp.float32)
        return contract(x.astype(dtype), kernel.astype(dtype), ((2,), (0,)), float32)


class Classifier(nn.Module):
    """Turn final states into class logits [B, T, C], float32: all positions, for any pooling."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        shape = (c.d_model, c.n_classes)
        init = INITIALISERS["normal"](c, "in", c.d_model)
        kernel = param(self, "kernel", init, shape, ("embed", None))
        logits = jnp.einsum("BTD,DC->BTC", x.astype(jnp.float32), kernel.astype(jnp.float32))
        if c.head_bias:
            bias = param(self, "bias", jax.nn.initializers.zeros, (c.n_classes,), (None,))
            logits = logits + bias.astype(jnp.float32)[None, None]
        return shard(logits, "batch", "length", None)


class Value(nn.Module):
    """Turn final states into expected rewards [B, T], float32; all 0 at first."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        zeros = jax.nn.initializers.zeros
        kernel = param(self, "kernel", zeros, (self.config.d_model,), ("embed",))
        bias = param(self, "bias", zeros, (), ())
        return jnp.einsum("BTD,D->BT", x.astype(jnp.float32), kernel.astype(jnp.float32)) + bias


class Prompt(nn.Module):
    """Hold the vectors that come before the embedded text."""

    config: TransformerConfig

    @nn.compact
    def __call__(self) -> Array:  # [P, D]
        c = self.config
        init = INITIALISERS[c.init](c, "embed", c.d_model)
        return param(self, "embedding", init, (c.adapter.length, c.d_model), (None, "embed"))


class Transformer(nn.Module):
    """A language model.

    `model.apply({"params": p}, tokens [B, T], ...)` returns logits [B, T, V] in float32, or
    (logits, cache) when a cache is given; with a classification head [B, T, classes].
    `method="hidden"`, `"hidden_and_aux"`, `"head"`, `"value"`, `"encode"` and `"pool"` reach the
    parts.

    Arguments common to all of them:
        segments: [B, T] int32; documents 1.., 0 = padding; tokens see their own segment only.
        positions: [B, T] int32; default 0.. (continuing each row with a cache).
        cache: see `llm.models.cache` and `llm.models.paged`; one document per row.
        dropout_keys: PRNG keys [B], one per example; None = no dropout.
        prefix: [B, T] bool; tokens that their whole segment may see (prefix-LM); with a cache
            [B, S], its slots.
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
        if c.classifies:
            self.classifier = Classifier(c)
        else:
            self.lm_head = Head(c)
        if c.value_head:
            self.value_head = Value(c)
        if c.pooler:
            self.pooler = Dense(c, "BD,DC->BC", (c.d_model, c.d_model), True)
        if c.adapter.name == "prompt":
            self.prompt = Prompt(c)

    def __call__(self, tokens: Array, *args: Any, **inputs: Any) -> Any:
        """Return logits [B, T, V] float32, or (logits, cache) with a cache."""
        hidden, cache, _ = self._run(tokens, *args, **inputs)
        if self.is_initializing() and self.config.pooler and not self.config.classifies:
            self._pool(hidden[:, 0])
        if self.is_mutable_collection("params") and self.config.value_head:
            self.value_head(hidden)
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
        """Turn states [B, T, D] into logits [B, T, V] (or [B, T, classes]) float32."""
        if self.config.classifies:
            if self.config.pooler:
                B, T, D = hidden.shape
                hidden = self._pool(hidden.reshape(B * T, D)).reshape(B, T, D)
            return self.classifier(hidden)
        return self.lm_head(hidden, self.embed)

    def value(self, hidden: Array) -> Array:
        """Turn states [B, T, D] into expected rewards [B, T], float32."""
        return self.value_head(hidden)

    def pool(self, tokens: Array, *args: Any, **inputs: Any) -> Array:
        """Return BERT's pooled first state [B, D]."""
        return self._pool(self._run(tokens, *args, **inputs)[0][:, 0])

    def _pool(self, hidden: Array) -> Array:  # [B, D] -> [B, D]
        return jnp.tanh(self.pooler(hidden))

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
        positions = _shift(self.config, positions)
        context = Context(positions, segments, keys=dropout_keys)
        x = self.embed(tokens, positions, token_types)
        x = self._noisy(x, context)
        return self.encoder(x, context, {})[0]

    def _run(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        cache: Cache | PagedCache | None = None,
        dropout_keys: Array | None = None,
        *,
        prefix: Array | None = None,
        token_types: Array | None = None,
        encoder_tokens: Array | None = None,
        encoder_segments: Array | None = None,
        encoder_positions: Array | None = None,
        encoded: Array | None = None,
    ) -> tuple[Array, Cache | PagedCache | None, Aux]:
        c = self.config
        context, written = _place(c, tokens, segments, positions, cache)
        context = context._replace(prefix=prefix, keys=dropout_keys)
        if c.architecture == "encoder_decoder" and not isinstance(written, PagedCache):
            if encoded is None and self.is_initializing() and encoder_tokens is None:
                encoder_tokens = tokens
            if encoded is None and encoder_tokens is not None:
                encoded = self.encode(
                    encoder_tokens, encoder_segments, encoder_positions, dropout_keys
                )
            context, written = _cross(context, written, encoded, encoder_segments)
        stack = self.encoder if c.architecture == "encoder" else self.decoder
        before = self._prompt_states() if c.adapter.name == "prompt" else None
        even = cache is None and c.architecture != "encoder" and not self.is_initializing()
        even = even and zigzag.wanted(tokens.shape[1])
        if even:
            tokens, token_types = _arrange((tokens, token_types))
            context = _even(context)
        with zigzag.order(even):
            x = self._noisy(self.embed(tokens, context.positions, token_types), context)
            x, buffers, aux = stack(x, context, _buffers(written), before)
        if even:
            x = zigzag.restore(x)
        if isinstance(written, PagedCache):
            return x, written._replace(pages=written.pages._replace(**buffers)), aux
        return x, None if written is None else written._replace(**buffers), aux

    def _noisy(self, x: Array, context: Context) -> Array:
        if context.keys is None:
            return x
        keys = fold(context.keys, _NOISE_SITE)
        return embed_noise(x, self.config.embed_noise, keys, context.segments)

    def _prompt_states(self) -> tuple[Array, Array]:
        """Return the prompt's keys and values [L, P, K, H]: those of one row without a text.

        In a decoder the prompt sees itself only, so all rows and documents share them.
        """
        c = self.config
        P = c.adapter.length
        positions = jnp.arange(P, dtype=jnp.int32)[None]
        x = self.embed.dress(self.prompt()[None], positions)
        empty = jnp.zeros((c.n_layers, 1, P, c.n_kv_heads, c.head_dim), jnp.dtype(c.dtype))
        context = Context(
            positions,
            None,
            slots=positions,
            k_positions=positions,
            k_segments=jnp.ones_like(positions),
        )
        _, buffers, _ = self.decoder(x, context, {"k": empty, "v": empty})
        return buffers["k"][:, 0], buffers["v"][:, 0]


def _arrange(tree: Any) -> Any:
    return jax.tree.map(zigzag.arrange, tree)


def _even(context: Context) -> Context:
    """Bring what stands beside the decoder's tokens into zigzag order."""
    rows = ("positions", "segments", "prefix")
    return context._replace(**{name: _arrange(getattr(context, name)) for name in rows})


def _place(
    config: TransformerConfig,
    tokens: Array,
    segments: Array | None,
    positions: Array | None,
    cache: Cache | PagedCache | None,
) -> tuple[Context, Cache | PagedCache | None]:
    """Tell where the tokens stand, and note it in the cache if there is one."""
    T = tokens.shape[1]
    if isinstance(cache, PagedCache):
        slots = _default_positions(tokens) if positions is None else positions
        real = jnp.ones(tokens.shape, bool) if segments is None else segments > 0
        place = Place(cache.table, slots, real)
        return Context(_shift(config, slots), segments, pages=place), cache
    config.check_length(T)
    if cache is None:
        positions = _default_positions(tokens) if positions is None else positions
        return Context(_shift(config, positions), segments), None
    slots, following, lengths = plan_writes(cache, segments, T)
    positions = _shift(config, following if positions is None else positions)
    cache = cache._replace(positions=write(cache.positions, positions, slots), lengths=lengths)
    context = Context(positions, segments, slots=slots)
    return context._replace(k_positions=cache.positions, k_segments=cache.segments()), cache


def _shift(config: TransformerConfig, positions: Array) -> Array:
    """Make room for virtual tokens at the first positions."""
    more = config.adapter.virtual_tokens
    return positions + more if more else positions


def _default_positions(tokens: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


def _buffers(cache: Cache | PagedCache | None) -> Buffers:
    if cache is None:
        return {}
    if isinstance(cache, PagedCache):
        return cache.pages.buffers()
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
