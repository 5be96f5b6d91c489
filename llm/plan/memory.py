# SPDX-License-Identifier: Apache-2.0
"""Estimate the memory of a training step on one device, part by part.

Arguments (parameters, optimizer state, batch) follow exactly from shapes and shardings. What the
step needs besides depends on the compiler's schedule: the parts below are the large ones.
"""

import math
from typing import Any, NamedTuple

from llm.models.config import GATED, SAVED, TransformerConfig

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


class Work(NamedTuple):
    """What one device computes at a time.

    Attributes:
        rows: sequences of one microbatch on the device.
        length: tokens of a sequence on the device.
        whole_length: tokens of a sequence.
        tensor: parts that heads, hidden units and vocabulary are split in.
        residual: parts that the residual stream is split in, besides rows and length.
        room: rows an expert-parallel device makes room for, over those it needs on average.
        gathered: True where weights are split over devices and gathered before use.
        microbatches: parts of a batch.
        chunk: positions whose logits exist at once; 0 for all.
        stored_matrix: True where attention scores exist as a matrix.
        local_params: parameters stored on the device.
        local_trained: those of them that are trained.
        layer_params: parameters of one layer, of which a tensor-parallel device uses its part.
    """

    rows: float
    length: float
    whole_length: int
    tensor: int
    residual: int
    room: float
    gathered: bool
    microbatches: int
    chunk: int
    stored_matrix: bool
    local_params: float
    local_trained: float
    layer_params: float

    @property
    def tokens(self) -> float:
        """Tokens of one microbatch on the device."""
        return self.rows * self.length


def tree_bytes(shapes: Any, shardings: Any) -> int:
    """Return the bytes of one device's part of a tree of shapes."""
    import jax

    sizes = jax.tree.map(
        lambda s, p: math.prod(p.shard_shape(tuple(s.shape))) * s.dtype.itemsize, shapes, shardings
    )
    return sum(jax.tree.leaves(sizes))


def tree_count(shapes: Any, shardings: Any) -> int:
    """Return the elements of one device's part of a tree of shapes."""
    import jax

    sizes = jax.tree.map(lambda s, p: math.prod(p.shard_shape(tuple(s.shape))), shapes, shardings)
    return sum(jax.tree.leaves(sizes))


def estimate(c: TransformerConfig, work: Work) -> dict[str, float]:
    """Return the bytes a step needs besides its arguments, by part.

    Saved activations and the 16-bit copy of the weights live through the whole pass, and so do the
    sums of gradients of several microbatches. Beside them stands the larger of two moments: the
    head with its logits, before any other gradient exists, and the first layer, when all do.
    """
    width, stored = WIDTH[c.dtype], WIDTH[c.param_dtype]
    gradients = work.local_trained * stored
    parts = {"saved_activations": c.n_layers * work.tokens * width * _saved(c, work)}
    if c.n_encoder_layers:
        parts["saved_activations"] *= 1 + c.n_encoder_layers / c.n_layers
    if c.dtype != c.param_dtype:
        parts["cast_weights"] = work.local_params * width
    if work.microbatches > 1:
        parts["summed_gradients"] = gradients
    layer = VALUES * work.tokens * width * _everything(c, work) + _matrix(c, work)
    head = _logits(c, work)
    if work.gathered:
        layer += GATHERED * work.layer_params / work.tensor * width
        # The head and its gradient; where positions are split, the embedding and its gradient,
        # which is in float32.
        unsplit = 2 if work.length == work.whole_length else 3
        head += unsplit * c.vocab_size * c.d_model / work.tensor * width
    if gradients + layer >= head:
        return {**parts, "gradients": gradients, "layer_at_work": layer}
    return {**parts, "head_at_work": head}


# Fitted to programs of the TPU compiler (docs/performance.md): shares of all values that a layer
# makes, backwards, and of its gathered weights that are there at once.
VALUES, GATHERED = 1.1, 0.7


def _hidden(c: TransformerConfig) -> tuple[float, int]:
    """Return hidden units a token passes through, and matrices that make them."""
    matrices = 2 if c.activation in GATED else 1
    if not c.n_experts:
        return c.d_ff, matrices
    return (c.experts_per_token + c.n_shared_experts) * c.d_expert, matrices


def _projections(c: TransformerConfig, tensor: int) -> float:
    return (c.n_heads + 2 * c.n_kv_heads) * c.head_dim / tensor


def kept(c: TransformerConfig) -> tuple[str, ...]:
    """Return which outputs of a layer's parts are kept for the backward pass, by name."""
    dense = [name for name in SAVED if name not in ("context", "residual")]
    if c.n_experts:  # experts' grouped matmuls are computed again
        dense = [name for name in dense if name not in ("gate", "up", "down")]
    names = {"full": (), "offload": (), "dots": tuple(dense), "save": c.remat_names}
    return names[c.remat]


def _saved(c: TransformerConfig, work: Work) -> float:
    """Return the values per token and layer that are kept for the backward pass."""
    if c.remat == "none":
        return _everything(c, work) + _matrix(c, work) / (work.tokens * WIDTH[c.dtype])
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    split: dict[str, float] = {"query": queries, "key": keys, "value": keys, "context": queries}
    split |= dict.fromkeys(("gate", "up"), _hidden(c)[0])
    if c.activation not in GATED:
        del split["gate"]
    whole = dict.fromkeys(("output", "down", "residual"), c.d_model)
    own = 2 / c.n_layers if c.remat == "offload" else 1  # the input; two layers' are on their way
    values = own * c.d_model / work.residual
    for name in kept(c):
        values += split.get(name, 0) / work.tensor + whole.get(name, 0)
    return values


def _everything(c: TransformerConfig, work: Work) -> float:
    """Return all values per token that a layer makes."""
    hidden, matrices = _hidden(c)
    attention = 2 * _projections(c, work.tensor) + c.n_heads * c.head_dim / work.tensor
    inner = (matrices + 1) * hidden * work.room / work.tensor
    return 6 * c.d_model / work.residual + attention + inner


def _matrix(c: TransformerConfig, work: Work) -> float:
    """Return the bytes of attention scores (float32) and probabilities, where they exist."""
    if not work.stored_matrix:
        return 0.0
    keys = min(work.whole_length, c.window) if c.window and "G" not in c.window_pattern else None
    pairs = work.tokens * (keys or work.whole_length) * c.n_heads / work.tensor
    return pairs * (4 + WIDTH[c.dtype])


def _logits(c: TransformerConfig, work: Work) -> float:
    """Return the bytes of float32 logits; the softmax and its gradient are fused into them."""
    share = 1.0
    if work.chunk and work.chunk < work.length and work.length % work.chunk == 0:
        share = work.chunk / work.length
    return work.tokens * share * c.vocab_size / work.tensor * 4
