# SPDX-License-Identifier: Apache-2.0
"""The transformer as a whole: packing, caching, dropout, remat, dtypes, encoder-decoders."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding, trees
from llm.errors import ConfigError
from llm.models.cache import init_cache
from llm.models.presets import config
from llm.models.transformer import Transformer

V, T = 64, 20
SMALL = {
    "vocab_size": V,
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 48,
    "max_length": 40,
}
# name -> fields that take another path through the code
KINDS = {
    "llama": {},
    "gpt2": {
        "norm": "layernorm",
        "position": "learned",
        "activation": "gelu_tanh",
        "attention_bias": True,
        "mlp_bias": True,
    },
    "gemma3": {
        "n_layers": 3,
        "norm_placement": "sandwich",
        "qk_norm": "head",
        "window": 4,
        "window_pattern": "LLG",
        "rope_local_theta": 100.0,
        "attention_softcap": 5.0,
        "logit_softcap": 5.0,
    },
    "alibi_parallel": {
        "position": "alibi",
        "parallel_block": "shared_norm",
        "tied_embeddings": False,
        "activation": "relu2",
    },
    "sinks_chunked": {"attention_sinks": True, "attention": "chunked", "attention_chunk": 7},
    "t5_decoder": {"position": "t5", "norm_placement": "output", "qk_norm": "full"},
    "moe": {"n_experts": 4, "n_shared_experts": 1},
    "moe_capacity": {"n_experts": 4, "moe_dispatch": "capacity", "capacity_factor": 4.0},
}


def _weights(model):
    """Draw weights large enough for mistakes to show, without compiling the initialisation."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 1.0 if path[-1].key == "scale" else 0.0
        return (scale + 0.15 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _model(kind, **more):
    model = Transformer(config("tiny", **{**SMALL, **KINDS[kind], **dict(more)}))
    return model, _weights(model)


def _documents(seed=0, sizes=(9, 7)):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, size) for size in sizes]


def _pack(documents, length=T):
    tokens, segments, positions = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for i, document in enumerate(documents):
        at = slice(start, start + len(document))
        tokens[0, at], segments[0, at], positions[0, at] = document, i + 1, range(len(document))
        start += len(document)
    return tokens, segments, positions


def _logps(model, params, tokens, segments, positions):
    logits = model.apply({"params": params}, tokens, segments, positions)
    return jax.nn.log_softmax(logits, axis=-1)


# The published families' packing is checked in test_convert; these are the other paths.
@pytest.mark.parametrize(
    "kind", ["gemma3", "alibi_parallel", "sinks_chunked", "t5_decoder", "moe_capacity"]
)
def test_packed_documents_are_as_if_alone(kind, jit):
    """Per-token log-probabilities packed and alone agree; so do they with other neighbours."""
    model, params = _model(kind)
    run = jit(functools.partial(_logps, model))
    first, second = _documents()
    packed = run(params, *_pack([first, second]))[0]
    alone = [run(params, *_pack([document]))[0] for document in (first, second)]
    np.testing.assert_allclose(packed[:9], alone[0][:9], atol=1e-5)
    np.testing.assert_allclose(packed[9:16], alone[1][:7], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "moe", "sinks_chunked"])
def test_editing_one_document_leaves_the_others_gradient_alone(kind, jit):
    model, params = _model(kind)
    weights = np.zeros((1, T, V), np.float32)
    weights[0, 9:16] = np.random.default_rng(5).normal(size=(7, V))

    @jit
    @jax.grad
    def gradient(params, tokens, segments, positions):
        return jnp.sum(_logps(model, params, tokens, segments, positions) * weights)

    first, second = _documents()
    other = _documents(seed=1)[0]
    got, again = (
        trees.flatten(gradient(params, *_pack([document, second]))) for document in (first, other)
    )
    for name, want in got.items():
        np.testing.assert_allclose(again[name], want, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "alibi_parallel", "t5_decoder", "moe"])
def test_decoding_with_a_cache_equals_the_full_forward(kind, jit):
    """Unequal prompts in a batch, padded on either side: chunked prefill, then step by step."""
    model, params = _model(kind)
    documents = _documents(sizes=(12, 9))
    padded = np.stack([np.resize(document, 12) for document in documents])
    full = jit(model.apply)({"params": params}, jnp.asarray(padded))
    run = jit(lambda p, t, s, c: model.apply({"params": p}, t, segments=s, cache=c))
    cache = init_cache(model.config, 2, 16)
    # Five tokens each, then one row right-padded and the other left-padded, then one by one.
    chunks = [(5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), (5, [5, 6, 7, -1, -1], [-1, -1, -1, 5, 6])]
    chunks += [(1, [8], [7]), (1, [9], [8]), (1, [10], [-1]), (1, [11], [-1])]
    for size, *columns in chunks:
        tokens, segments = np.zeros((2, size), np.int32), np.zeros((2, size), np.int32)
        for row, column in enumerate(columns):
            for at, i in enumerate(column):
                if i >= 0:
                    tokens[row, at], segments[row, at] = documents[row][i], 1
        logits, cache = run(params, tokens, segments, cache)
        for row, column in enumerate(columns):
            for at, i in enumerate(column):
                if i >= 0:
                    np.testing.assert_allclose(logits[row, at], full[row][i], atol=1e-4)
    np.testing.assert_array_equal(cache.lengths, [12, 9])


def test_rewinding_a_row_forgets_its_end(jit):
    model, params = _model("llama")
    run = jit(lambda t, c: model.apply({"params": params}, t, cache=c))
    (document,) = _documents(sizes=(8,))
    _, cache = run(jnp.asarray(document[None]), init_cache(model.config, 1, 16))
    wanted, _ = run(jnp.asarray(document[None, 4:]), cache._replace(lengths=jnp.array([4])))
    full, _ = run(jnp.asarray(document[None]), init_cache(model.config, 1, 16))
    np.testing.assert_allclose(wanted[0], full[0, 4:], atol=1e-5)


def test_tokens_beyond_the_cache_are_dropped_not_wrapped(jit):
    model, params = _model("llama")
    run = jit(lambda t, c: model.apply({"params": params}, t, cache=c))
    (document,) = _documents(sizes=(8,))
    _, cache = run(jnp.asarray(document[None]), init_cache(model.config, 1, 6))
    _, exact = run(jnp.asarray(document[None, :6]), init_cache(model.config, 1, 6))
    np.testing.assert_allclose(cache.k, exact.k, atol=1e-5)
    assert int(cache.lengths[0]) == 6


def _dropped(model, params, tokens, keys):
    return model.apply({"params": params}, tokens, dropout_keys=keys)


@pytest.mark.parametrize("field", ["dropout", "stochastic_depth"])
def test_random_masks_belong_to_the_example_not_to_the_batch(field, jit):
    model, params = _model("llama", **{field: 0.5})
    run = jit(functools.partial(_dropped, model))
    tokens = jnp.asarray(np.stack(_documents(sizes=(8, 8))))
    keys = jax.random.split(jax.random.key(1), 2)
    both = run(params, tokens, keys)
    np.testing.assert_allclose(both[1], run(params, tokens[::-1], keys[::-1])[0], atol=1e-6)
    plain = jit(model.apply)({"params": params}, tokens)
    assert np.abs(both - plain).max() > 1e-2
    assert np.abs(run(params, tokens, keys[::-1]) - both).max() > 1e-2


def test_dropout_keeps_the_mean():
    from llm.models.layers import dropout

    keys = jax.random.split(jax.random.key(0), 64)
    x = jnp.ones((64, 50, 8))
    y = dropout(x, 0.25, keys)
    np.testing.assert_allclose(np.mean(y), 1.0, atol=0.02)
    np.testing.assert_allclose(np.mean(y == 0), 0.25, atol=0.01)


EXECUTIONS = (
    {"remat": "full"},
    {"remat": "dots"},
    {"remat": "save", "remat_names": ("gate", "context")},
    {"remat": "offload"},
    {"scan_layers": False},
)


@pytest.mark.parametrize("how", EXECUTIONS, ids=lambda how: "-".join(map(str, how.values())))
def test_execution_choices_do_not_change_gradients(how, jit):
    plain, params = _model("gemma3")
    other = Transformer(config("tiny", **{**SMALL, **KINDS["gemma3"], **how}))
    tokens = jnp.asarray(np.stack(_documents(sizes=(8, 8))))
    weights = np.random.default_rng(2).normal(size=(2, 8, V)).astype(np.float32)

    def gradient(model):
        def loss(params):
            return jnp.sum(model.apply({"params": params}, tokens) * weights)

        return trees.flatten(jit(jax.grad(loss))(params))

    want = gradient(plain)
    for name, got in gradient(other).items():
        scale = np.abs(want[name]).max() + 1e-3
        np.testing.assert_allclose(got / scale, want[name] / scale, atol=2e-5, err_msg=name)


def test_remat_policies_keep_what_they_name():
    tokens = jnp.zeros((1, 8), jnp.int32)

    def program(**how):
        model = Transformer(config("tiny", **SMALL, attention="xla", dtype="bfloat16", **how))
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)
        loss = jax.grad(lambda p: jnp.sum(model.apply(p, tokens)))
        return str(jax.make_jaxpr(loss)(sharding.unbox(params)))

    # Multiplications in the program: each that is not kept is there once more.
    count = {name: program(**how).count("dot_general[") for name, how in REMAT_CASES.items()}
    assert count["none"] == count["dots"] - 2  # the scores and their sum are no dense layers
    assert count["save"] == count["full"] - 2
    assert count["full"] == count["offload"] > count["save"]
    assert "pinned_host" in program(remat="offload") or "Host" in program(remat="offload")
    with pytest.raises(ConfigError, match="remat_names"):
        config("tiny", **SMALL, remat="save", remat_names=("hidden",))


REMAT_CASES = {
    "none": {},
    "full": {"remat": "full"},
    "dots": {"remat": "dots"},
    "save": {"remat": "save", "remat_names": ("gate", "up")},
    "offload": {"remat": "offload"},
}


def test_bfloat16_compute_keeps_float32_parameters_and_logits(jit):
    model, params = _model("llama")
    half = Transformer(config("tiny", **SMALL, dtype="bfloat16"))
    tokens = jnp.asarray(np.stack(_documents(sizes=(8, 8))))
    logits = jit(half.apply)({"params": params}, tokens)
    states = jit(functools.partial(half.apply, method="hidden"))({"params": params}, tokens)
    assert logits.dtype == jnp.float32 and states.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, jit(model.apply)({"params": params}, tokens), atol=0.15)
    shapes = jax.eval_shape(half.init, jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_hidden_then_head_is_the_whole_model(jit):
    model, params = _model("alibi_parallel")
    tokens = jnp.asarray(np.stack(_documents(sizes=(8, 8))))

    def parts(variables, tokens):
        return model.apply(
            variables, model.apply(variables, tokens, method="hidden"), method="head"
        )

    variables = {"params": params}
    got, want = jit(parts)(variables, tokens), jit(model.apply)(variables, tokens)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_prefix_tokens_see_each_other_and_later_ones_do_not(jit):
    model, params = _model("llama")
    run = jit(lambda tokens, prefix: model.apply({"params": params}, tokens, prefix=prefix))
    tokens = np.stack(_documents(sizes=(8, 8)))[:1]
    prefix = jnp.asarray(np.arange(8)[None] < 4)
    base = run(tokens, prefix)
    edited = tokens.copy()
    edited[0, 3] = (edited[0, 3] + 1) % V  # the prefix's last token
    assert np.abs(run(edited, prefix) - base)[0, 0].max() > 1e-4
    edited = tokens.copy()
    edited[0, 5] = (edited[0, 5] + 1) % V  # after the prefix
    np.testing.assert_allclose(run(edited, prefix)[0, :5], base[0, :5], atol=1e-6)


def test_encoder_decoder_with_a_cache_equals_the_full_forward(jit):
    c = config("t5_v1_1_small", **{**SMALL, "n_kv_heads": 4, "n_encoder_layers": 1})
    model = Transformer(c)
    source = jnp.asarray(_pack(_documents(seed=3, sizes=(6,)), 8)[0])
    segments = jnp.asarray((np.arange(8)[None] < 6).astype(np.int32))
    target = jnp.asarray(_documents(sizes=(7,))[0][None])
    variables = {"params": _weights(model)}
    run = jit(functools.partial(model.apply, variables))
    full = run(target, encoder_tokens=source, encoder_segments=segments)
    encode = jit(functools.partial(model.apply, variables, method="encode"))
    encoded = encode(source, segments)
    empty = init_cache(c, 1, 9, "", 8)
    logits, cache = run(target[:, :1], cache=empty, encoded=encoded, encoder_segments=segments)
    np.testing.assert_allclose(logits, full[:, :1], atol=1e-5)
    for i in range(1, 7):
        logits, cache = run(target[:, i : i + 1], cache=cache)
        np.testing.assert_allclose(logits[:, 0], full[:, i], atol=1e-5)


def test_pooler_reads_the_first_state(jit):
    c = config("bert_tiny", **{**SMALL, "n_kv_heads": 4})
    model = Transformer(c)
    tokens = jnp.asarray(np.stack(_documents(sizes=(8, 8))))
    params = _weights(model)
    run = {name: jit(functools.partial(model.apply, method=name)) for name in ("hidden", "pool")}
    states, pooled = (run[name]({"params": params}, tokens) for name in ("hidden", "pool"))
    pooler = params["pooler"]
    want = np.tanh(np.asarray(states[:, 0]) @ pooler["kernel"] + pooler["bias"][None])
    np.testing.assert_allclose(pooled, want, atol=1e-5)


def test_initialisation_is_what_the_config_names(jit):
    def stds(**fields):
        c = config("tiny", **{**SMALL, "d_model": 64, "d_ff": 256, **fields})
        init = jit(Transformer(c).init)
        params = nn.unbox(init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
        mlp = params["decoder"]["layers"]["mlp"]
        return [float(np.std(mlp[name]["kernel"])) for name in ("up", "down")]

    residual = (2 * SMALL["n_layers"]) ** -0.5
    np.testing.assert_allclose(stds(init="truncated"), [0.02, 0.02 * residual], rtol=0.03)
    np.testing.assert_allclose(stds(init="fan_in"), [64**-0.5, 256**-0.5 * residual], rtol=0.03)
