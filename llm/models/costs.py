# SPDX-License-Identifier: Apache-2.0
"""Count what a model computes per token, from its config alone. No JAX."""

from llm.core.profile import AttentionLayer
from llm.models.config import GATED, TransformerConfig


def _attention_matmul(config: TransformerConfig) -> int:
    queries = config.d_model * config.n_heads * config.head_dim
    keys_and_values = 2 * config.d_model * config.n_kv_heads * config.head_dim
    return 2 * queries + keys_and_values


def _mlp_matmul(config: TransformerConfig) -> int:
    matrices = 3 if config.activation in GATED else 2
    if not config.n_experts:
        return matrices * config.d_model * config.d_ff
    used = config.experts_per_token + config.n_shared_experts
    scores = config.n_experts + config.shared_expert_gate
    return used * matrices * config.d_model * config.d_expert + config.d_model * scores


def matmul_parameters(config: TransformerConfig) -> int:
    """Count the matmul parameters that one token passes: N_active of the MFU formula.

    The LM head counts even when tied; the embedding lookup, norms and biases do not. Only the
    experts that a token visits count. An encoder-decoder's encoder is not included: it passes other
    tokens.
    """
    cross = _attention_matmul(config) if config.architecture == "encoder_decoder" else 0
    layer = _attention_matmul(config) + cross + _mlp_matmul(config)
    return config.n_layers * layer + config.d_model * config.vocab_size


def attention_layers(config: TransformerConfig) -> list[AttentionLayer]:
    """List the self-attention layers of the main stack, equal ones together."""
    local = sum(config.is_local(i) for i in range(config.n_layers))
    shapes = []
    for layers, window in ((config.n_layers - local, None), (local, config.window)):
        if layers:
            shapes.append(
                AttentionLayer(config.n_heads, config.head_dim, window, config.causal, layers)
            )
    return shapes
