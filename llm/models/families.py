# SPDX-License-Identifier: Apache-2.0
"""Tensor names and layouts of Hugging Face checkpoints, one table per family.

A row says: our leaf, their tensor, how their dimensions are laid out, ours. Letters as everywhere
(D model, N heads, K kv-heads, H head, F hidden, V vocabulary, E experts), and X expert hidden,
Z hidden of the shared experts together, U one, G classes, P position rows, R relative buckets,
Y token types, C another D. `(N H)` is one flattened dimension, `{A|B|C}` a concatenation of which
`pick` says the row's part. `{i}` counts layers, `{e}` experts.
"""

from collections.abc import Callable
from typing import NamedTuple

from llm.models import hf_heads
from llm.models.config import GATED, TransformerConfig


class Row(NamedTuple):
    """One tensor's correspondence."""

    ours: str
    theirs: str
    their_layout: str
    our_layout: str
    pick: int = 0


Rows = list[Row]


def _vector(ours: str, theirs: str, letter: str = "D") -> Row:
    return Row(ours, theirs, letter, letter)


def _norm(ours: str, theirs: str, bias: bool) -> Rows:
    rows = [_vector(f"{ours}/scale", f"{theirs}.weight")]
    return [*rows, _vector(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


def _linear(ours: str, theirs: str, out: str, into: str, bias: bool) -> Rows:
    """A torch Linear, stored [out, in]; ours is [in, out]."""
    rows = [
        Row(f"{ours}/kernel", f"{theirs}.weight", f"{_flat(out)} {_flat(into)}", f"{into} {out}")
    ]
    if bias:
        rows.append(Row(f"{ours}/bias", f"{theirs}.bias", _flat(out), out))
    return rows


def _flat(letters: str) -> str:
    return f"({letters})" if " " in letters else letters


def _attention(ours: str, theirs: str, names: tuple[str, ...], bias: bool, out_bias: bool) -> Rows:
    query, key, value, output = (f"{theirs}.{name}" for name in names)
    return [
        *_linear(f"{ours}/query", query, "N H", "D", bias),
        *_linear(f"{ours}/key", key, "K H", "D", bias),
        *_linear(f"{ours}/value", value, "K H", "D", bias),
        *_linear(f"{ours}/output", output, "D", "N H", out_bias),
    ]


_PROJ = ("q_proj", "k_proj", "v_proj", "o_proj")


def _mlp(ours: str, theirs: str, gate: str, up: str, down: str, gated: bool, bias: bool) -> Rows:
    rows = _linear(f"{ours}/up", f"{theirs}.{up}", "F", "D", bias)
    if gated:
        rows += _linear(f"{ours}/gate", f"{theirs}.{gate}", "F", "D", bias)
    return rows + _linear(f"{ours}/down", f"{theirs}.{down}", "D", "F", bias)


def _experts(router: str, experts: str, gate: str, up: str, down: str) -> Rows:
    at = "decoder/layers/moe"
    one = f"{experts}.{{e}}"
    return [
        Row(f"{at}/router_kernel", f"{router}.weight", "E D", "D E"),
        Row(f"{at}/gate_kernel", f"{one}.{gate}.weight", "X D", "D X"),
        Row(f"{at}/up_kernel", f"{one}.{up}.weight", "X D", "D X"),
        Row(f"{at}/down_kernel", f"{one}.{down}.weight", "D X", "X D"),
    ]


def _shared_experts(theirs: str) -> Rows:
    at = "decoder/layers/moe"
    rows = [
        Row(f"{at}/shared/{name}/kernel", f"{theirs}.shared_expert.{name}_proj.weight", *layouts)
        for name, layouts in (
            ("gate", ("Z D", "D Z")),
            ("up", ("Z D", "D Z")),
            ("down", ("D Z", "Z D")),
        )
    ]
    gate = f"{theirs}.shared_expert_gate.weight"
    return [*rows, Row(f"{at}/shared_gate_kernel", gate, "U D", "D U")]


def _table(ours: str, theirs: str, rows: str) -> Row:
    return Row(ours, theirs, f"{rows} D", f"{rows} D")


def _untied(c: TransformerConfig, theirs: str = "lm_head.weight") -> Rows:
    return [] if c.tied_embeddings else [Row("lm_head/kernel", theirs, "V D", "D V")]


def llama_rows(c: TransformerConfig) -> Rows:
    """Llama, SmolLM2, Mistral, Qwen, Gemma, OLMo 2, Mixtral: the names differ in the norms only."""
    layer, ours = "model.layers.{i}", "decoder/layers"
    rows = [_table("embed/embedding", "model.embed_tokens.weight", "V")]
    rows += _norm("decoder/final_norm", "model.norm", False) + _untied(c)
    heads = f"{layer}.self_attn"
    rows += _attention(f"{ours}/attention", heads, _PROJ, c.attention_bias, c.attention_out_bias)
    if c.qk_norm == "head":
        rows.append(_vector(f"{ours}/attention/query_norm/scale", f"{heads}.q_norm.weight", "H"))
        rows.append(_vector(f"{ours}/attention/key_norm/scale", f"{heads}.k_norm.weight", "H"))
    if c.qk_norm == "full":
        for name, theirs, letter in (("query", "q", "N"), ("key", "k", "K")):
            target = f"{ours}/attention/{name}_norm/scale"
            rows.append(
                Row(target, f"{heads}.{theirs}_norm.weight", f"({letter} H)", f"{letter} H")
            )
    for our_norm, their_norm in _LLAMA_NORMS[c.norm_placement].items():
        rows += _norm(f"{ours}/{our_norm}", f"{layer}.{their_norm}", False)
    if not c.n_experts:
        names = ("gate_proj", "up_proj", "down_proj")
        return rows + _mlp(f"{ours}/mlp", f"{layer}.mlp", *names, True, c.mlp_bias)
    if c.n_shared_experts:
        rows += _shared_experts(f"{layer}.mlp")
    if c.qk_norm == "head" or c.n_shared_experts:  # Qwen
        names = ("gate_proj", "up_proj", "down_proj")
        return rows + _experts(f"{layer}.mlp.gate", f"{layer}.mlp.experts", *names)
    block = f"{layer}.block_sparse_moe"
    return rows + _experts(f"{block}.gate", f"{block}.experts", "w1", "w3", "w2")


_LLAMA_NORMS = {
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "output": {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}


def starcoder2_rows(c: TransformerConfig) -> Rows:
    """StarCoder 2: Llama's names with biased LayerNorms and a plain feed-forward layer."""
    layer, ours = "model.layers.{i}", "decoder/layers"
    heads = f"{layer}.self_attn"
    return [
        _table("embed/embedding", "model.embed_tokens.weight", "V"),
        *_norm("decoder/final_norm", "model.norm", True),
        *_untied(c),
        *_attention(f"{ours}/attention", heads, _PROJ, c.attention_bias, c.attention_out_bias),
        *_norm(f"{ours}/attention_norm", f"{layer}.input_layernorm", True),
        *_norm(f"{ours}/mlp_norm", f"{layer}.post_attention_layernorm", True),
        *_mlp(f"{ours}/mlp", f"{layer}.mlp", "", "c_fc", "c_proj", False, c.mlp_bias),
    ]


def phi3_rows(c: TransformerConfig) -> Rows:
    """Phi-3: Llama with query-key-value and gate-up fused."""
    fused = ("attention/query", "attention/key", "attention/value", "mlp/gate", "mlp/up")
    rows = [r for r in llama_rows(c) if not any(name in r.ours for name in fused)]
    layer, at = "model.layers.{i}", "decoder/layers"
    qkv, layout = f"{layer}.self_attn.qkv_proj.weight", "{N H|K H|K H} D"
    gate_up, halves = f"{layer}.mlp.gate_up_proj.weight", "{F|F} D"
    return [
        *rows,
        Row(f"{at}/attention/query/kernel", qkv, layout, "D N H", 0),
        Row(f"{at}/attention/key/kernel", qkv, layout, "D K H", 1),
        Row(f"{at}/attention/value/kernel", qkv, layout, "D K H", 2),
        Row(f"{at}/mlp/gate/kernel", gate_up, halves, "D F", 0),
        Row(f"{at}/mlp/up/kernel", gate_up, halves, "D F", 1),
    ]


def gpt2_rows(c: TransformerConfig) -> Rows:
    """GPT-2: fused query-key-value; its Conv1D stores [in, out]."""
    layer, at = "transformer.h.{i}", "decoder/layers"
    rows = [
        _table("embed/embedding", "transformer.wte.weight", "V"),
        _table("embed/positions", "transformer.wpe.weight", "P"),
        *_norm("decoder/final_norm", "transformer.ln_f", True),
        *_norm(f"{at}/attention_norm", f"{layer}.ln_1", True),
        *_norm(f"{at}/mlp_norm", f"{layer}.ln_2", True),
        Row(f"{at}/attention/output/kernel", f"{layer}.attn.c_proj.weight", "(N H) D", "N H D"),
        _vector(f"{at}/attention/output/bias", f"{layer}.attn.c_proj.bias"),
        Row(f"{at}/mlp/up/kernel", f"{layer}.mlp.c_fc.weight", "D F", "D F"),
        _vector(f"{at}/mlp/up/bias", f"{layer}.mlp.c_fc.bias", "F"),
        Row(f"{at}/mlp/down/kernel", f"{layer}.mlp.c_proj.weight", "F D", "F D"),
        _vector(f"{at}/mlp/down/bias", f"{layer}.mlp.c_proj.bias"),
    ]
    for pick, (name, heads) in enumerate((("query", "N"), ("key", "K"), ("value", "K"))):
        fused, leaf = f"{layer}.attn.c_attn", f"{at}/attention/{name}"
        parts = "{N H|K H|K H}"
        rows.append(Row(f"{leaf}/kernel", f"{fused}.weight", f"D {parts}", f"D {heads} H", pick))
        rows.append(Row(f"{leaf}/bias", f"{fused}.bias", parts, f"{heads} H", pick))
    return rows


def neox_rows(c: TransformerConfig) -> Rows:
    """GPT-NeoX, Pythia: query, key and value interleaved head by head."""
    layer, at = "gpt_neox.layers.{i}", "decoder/layers"
    rows = [
        _table("embed/embedding", "gpt_neox.embed_in.weight", "V"),
        *_untied(c, "embed_out.weight"),
        *_norm("decoder/final_norm", "gpt_neox.final_layer_norm", True),
        *_norm(f"{at}/attention_norm", f"{layer}.input_layernorm", True),
        *_norm(f"{at}/mlp_norm", f"{layer}.post_attention_layernorm", True),
        *_linear(f"{at}/attention/output", f"{layer}.attention.dense", "D", "N H", True),
        *_linear(f"{at}/mlp/up", f"{layer}.mlp.dense_h_to_4h", "F", "D", True),
        *_linear(f"{at}/mlp/down", f"{layer}.mlp.dense_4h_to_h", "D", "F", True),
    ]
    for pick, name in enumerate(("query", "key", "value")):
        fused, leaf = f"{layer}.attention.query_key_value", f"{at}/attention/{name}"
        rows.append(Row(f"{leaf}/kernel", f"{fused}.weight", "(N {H|H|H}) D", "D N H", pick))
        rows.append(Row(f"{leaf}/bias", f"{fused}.bias", "(N {H|H|H})", "N H", pick))
    return rows


def opt_rows(c: TransformerConfig) -> Rows:
    """OPT."""
    layer, at = "model.decoder.layers.{i}", "decoder/layers"
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return [
        _table("embed/embedding", "model.decoder.embed_tokens.weight", "V"),
        _table("embed/positions", "model.decoder.embed_positions.weight", "P"),
        *_norm("decoder/final_norm", "model.decoder.final_layer_norm", True),
        *_norm(f"{at}/attention_norm", f"{layer}.self_attn_layer_norm", True),
        *_norm(f"{at}/mlp_norm", f"{layer}.final_layer_norm", True),
        *_attention(f"{at}/attention", f"{layer}.self_attn", names, True, True),
        *_mlp(f"{at}/mlp", layer, "", "fc1", "fc2", False, True),
    ]


def _encoder_rows(
    layer: str, heads: tuple[str, ...], after: str, up: str, down: str, norm: str
) -> Rows:
    at = "encoder/layers"
    return [
        *_attention(f"{at}/attention", layer, heads, True, True),
        *_norm(f"{at}/attention_post_norm", f"{layer}.{after}", True),
        *_linear(f"{at}/mlp/up", f"{layer}.{up}", "F", "D", True),
        *_linear(f"{at}/mlp/down", f"{layer}.{down}", "D", "F", True),
        *_norm(f"{at}/mlp_post_norm", f"{layer}.{norm}", True),
    ]


def _mlm_rows(dense: str, norm: str, bias: str) -> Rows:
    return [
        *_linear("lm_head/dense", dense, "C", "D", True),
        *_norm("lm_head/norm", norm, True),
        _vector("lm_head/bias", bias, "V"),
    ]


def _bert_rows(c: TransformerConfig, prefix: str) -> Rows:
    embeddings, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{i}}"
    base = "attention.self"
    heads = (f"{base}.query", f"{base}.key", f"{base}.value", "attention.output.dense")
    after = "attention.output.LayerNorm"
    rows = [
        _table("embed/embedding", f"{embeddings}.word_embeddings.weight", "V"),
        _table("embed/positions", f"{embeddings}.position_embeddings.weight", "P"),
        _table("embed/types", f"{embeddings}.token_type_embeddings.weight", "Y"),
        *_norm("embed/norm", f"{embeddings}.LayerNorm", True),
        *_encoder_rows(
            layer, heads, after, "intermediate.dense", "output.dense", "output.LayerNorm"
        ),
    ]
    if c.pooler:
        rows += _linear("pooler", f"{prefix}.pooler.dense", "C", "D", True)
    return rows


def bert_rows(c: TransformerConfig) -> Rows:
    """BERT with its masked-language-model head."""
    head = "cls.predictions"
    dense, norm = f"{head}.transform.dense", f"{head}.transform.LayerNorm"
    return _bert_rows(c, "bert") + _mlm_rows(dense, norm, f"{head}.bias")


def roberta_rows(c: TransformerConfig) -> Rows:
    """RoBERTa with its masked-language-model head."""
    names = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    return _bert_rows(c, "roberta") + _mlm_rows(*names)


def distilbert_rows(c: TransformerConfig) -> Rows:
    """DistilBERT with its masked-language-model head."""
    embeddings, layer = "distilbert.embeddings", "distilbert.transformer.layer.{i}"
    heads = tuple(f"attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin"))
    return [
        _table("embed/embedding", f"{embeddings}.word_embeddings.weight", "V"),
        _table("embed/positions", f"{embeddings}.position_embeddings.weight", "P"),
        *_norm("embed/norm", f"{embeddings}.LayerNorm", True),
        *_encoder_rows(layer, heads, "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
        *_mlm_rows("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ]


def t5_rows(c: TransformerConfig) -> Rows:
    """T5 v1.0, v1.1 and Flan-T5."""
    rows = [_table("embed/embedding", "shared.weight", "V"), *_untied(c)]
    for stack in ("encoder", "decoder"):
        block, at = f"{stack}.block.{{i}}", f"{stack}/layers"
        last = 2 if stack == "decoder" else 1
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names = ("q", "k", "v", "o")
        rows += _norm(f"{stack}/final_norm", f"{stack}.final_layer_norm", False)
        rows.append(Row(f"{stack}/relative/table", first, "R N", "R N"))
        rows += _norm(f"{at}/attention_norm", f"{block}.layer.0.layer_norm", False)
        own = f"{block}.layer.0.SelfAttention"
        rows += _attention(f"{at}/attention", own, names, False, False)
        if stack == "decoder":
            rows += _norm(f"{at}/cross_norm", f"{block}.layer.1.layer_norm", False)
            other = f"{block}.layer.1.EncDecAttention"
            rows += _attention(f"{at}/cross", other, names, False, False)
        rows += _norm(f"{at}/mlp_norm", f"{block}.layer.{last}.layer_norm", False)
        dense, gated = f"{block}.layer.{last}.DenseReluDense", c.activation in GATED
        up = "wi_1" if gated else "wi"
        rows += _mlp(f"{at}/mlp", dense, "wi_0", up, "wo", gated, False)
    return rows


def _with_head(kind: str, base: Callable[[TransformerConfig], Rows]) -> Callable[..., Rows]:
    """Put a classification head, if the config has one, in the place of the tokens' head."""

    def rows(c: TransformerConfig) -> Rows:
        if not c.classifies:
            return base(c)
        kept = [row for row in base(c) if not row.ours.startswith("lm_head/")]
        name = hf_heads.stem(kind, c.head)
        kept.append(Row("classifier/kernel", f"{name}.weight", "G D", "D G"))
        if c.head_bias:
            kept.append(_vector("classifier/bias", f"{name}.bias", "G"))
        return kept

    return rows


_ROWS: dict[str, Callable[[TransformerConfig], Rows]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"), llama_rows),
    **dict.fromkeys(("qwen2_moe", "gemma", "gemma2", "gemma3_text", "olmo2"), llama_rows),
    "starcoder2": starcoder2_rows,
    "phi3": phi3_rows,
    "gpt2": gpt2_rows,
    "gpt_neox": neox_rows,
    "opt": opt_rows,
    "bert": bert_rows,
    "roberta": roberta_rows,
    "distilbert": distilbert_rows,
    "t5": t5_rows,
}
# model_type of config.json -> its rows
ROWS = {kind: _with_head(kind, base) for kind, base in _ROWS.items()}

# Tensors that hold nothing of their own: masks, tables computed anew, tied copies, other heads.
IGNORED = (
    r".*\.(attn|attention)\.(masked_)?bias",
    r".*\.rotary_emb\.inv_freq",
    r".*\.position_ids",
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    r"cls\.predictions\.decoder\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
    r"lm_head\.decoder\.(weight|bias)",
    r"vocab_projector\.weight",
)
