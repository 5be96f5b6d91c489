# SPDX-License-Identifier: Apache-2.0
"""Count a model's parameters by part, from its config alone. No JAX."""

from llm.models.config import GATED, TransformerConfig


def count(config: TransformerConfig) -> int:
    """Return the number of parameters."""
    return sum(by_part(config).values())


def by_part(config: TransformerConfig) -> dict[str, int]:
    """Return parameter counts: embedding, attention, mlp (all experts), norms, head."""
    c = config
    stacks = []  # (layers, attention sublayers per layer)
    if c.architecture != "decoder":
        stacks.append((c.n_encoder_layers or c.n_layers, 1))
    if c.architecture != "encoder":
        stacks.append((c.n_layers, 2 if c.architecture == "encoder_decoder" else 1))
    norm = (2 if c.norm == "layernorm" else 1) * c.d_model
    parts = {"embedding": _embedding(c), "attention": 0, "mlp": 0, "norms": 0, "head": _head(c)}
    for layers, sublayers in stacks:
        parts["attention"] += layers * sublayers * _attention(c)
        parts["mlp"] += layers * _mlp(c)
        parts["norms"] += layers * _norm_sites(c, sublayers) * norm + (norm if c.final_norm else 0)
        if c.position == "t5":
            parts["attention"] += c.relative_buckets * c.n_heads
    if c.embed_norm:
        parts["norms"] += norm
    return parts


def _embedding(c: TransformerConfig) -> int:
    rows = c.vocab_size + c.token_types
    if c.position == "learned":
        rows += c.max_length + c.position_offset
    return rows * c.d_model


def _attention(c: TransformerConfig) -> int:
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    total = 2 * c.d_model * (queries + keys)
    if c.attention_bias:
        total += queries + 2 * keys
    if c.attention_out_bias:
        total += c.d_model
    scales = 2 if c.norm == "layernorm" else 1
    if c.qk_norm == "head":
        total += scales * 2 * c.head_dim
    if c.qk_norm == "full":
        total += scales * (queries + keys)
    return total + (c.n_heads if c.attention_sinks else 0)


def _dense_mlp(c: TransformerConfig, hidden: int) -> int:
    matrices = 3 if c.activation in GATED else 2
    biases = (matrices - 1) * hidden + c.d_model if c.mlp_bias else 0
    return matrices * c.d_model * hidden + biases


def _mlp(c: TransformerConfig) -> int:
    if not c.n_experts:
        return _dense_mlp(c, c.d_ff)
    total = c.d_model * c.n_experts + c.n_experts * 3 * c.d_model * c.d_expert
    if c.n_shared_experts:
        total += _dense_mlp(c, c.n_shared_experts * c.d_expert)
        total += c.d_model if c.shared_expert_gate else 0
    return total


def _norm_sites(c: TransformerConfig, attention_sublayers: int) -> int:
    """Return the norms of a layer over the model size."""
    sublayers = attention_sublayers + 1
    if c.parallel_block == "shared_norm":
        return 1
    return 2 * sublayers if c.norm_placement == "sandwich" else sublayers


def _head(c: TransformerConfig) -> int:
    total = 0 if c.tied_embeddings else c.d_model * c.vocab_size
    if c.head == "mlm":
        norm = (2 if c.norm == "layernorm" else 1) * c.d_model
        total += c.d_model * c.d_model + c.d_model + norm
    if c.head_bias:
        total += c.vocab_size
    if c.pooler:
        total += c.d_model * c.d_model + c.d_model
    return total
