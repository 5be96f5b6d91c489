# SPDX-License-Identifier: Apache-2.0
"""The engine: a text depends on its own request only, whatever runs, is shared or is guessed."""

import asyncio
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.sharding import make_mesh, unbox
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError
from llm.generate import buckets, loading, programs, scoring
from llm.generate.engine import Engine, Options, QueueFull
from llm.generate.prefix_cache import PagePool, page_names
from llm.generate.requests import Request
from llm.generate.sampling import Settings
from llm.generate.scoring import Window
from llm.models.config import TransformerConfig
from llm.models.paged import PAGE, PagedCache, init_pages
from llm.models.transformer import Transformer, separate

CONFIG = TransformerConfig(
    vocab_size=96, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, max_length=512
)
GREEDY, DRAWN = Settings(), Settings(0.9, top_p=0.95)


def build(config, seed=0, scale=0.25, mesh=None):
    shapes = flatten(unbox(loading.parameter_shapes(Transformer(config))))
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(0, scale, leaf.shape) for name, leaf in sorted(shapes.items())}
    return loading.assemble(config, unflatten(params), mesh=mesh)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG)


@pytest.fixture(scope="module")
def engine(model):
    return model.engine()


def prompts(sizes, seed=1):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, CONFIG.vocab_size, n).tolist()) for n in sizes]


def mixed(count=12, tokens=20):
    """Make requests of many lengths, greedy and drawn, some with a text that repeats."""
    sizes = [1, 2, 15, 17, 63, 64, 65, 66, 130, 200, 300, 7]
    texts = prompts(sizes[:count])
    texts[2] = texts[2] * 4
    return [
        Request(text, tokens, GREEDY if i % 2 else DRAWN._replace(seed=i))
        for i, text in enumerate(texts)
    ]


class Fake:
    """A device that chooses token 1 for every row, once per call."""

    def clear(self): ...
    def grow(self, pages): ...
    def read(self, tokens, start, real, table): ...

    def decode(self, rows, steps):
        ones = np.ones((len(rows.token), 1), np.int32)
        return programs.Chosen(ones, ones * -1.0, (rows.left > 0).astype(np.int32), 1)


def faked(model, **options):
    return Engine(model.model, model.params, options=Options(**options), device=Fake())


def same(got, wanted):
    """Compare texts, and log-probabilities to the last bit that tests' unfused programs give."""
    assert [one.tokens for one in got] == [one.tokens for one in wanted]
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-6)


@pytest.fixture(scope="module")
def alone(model):
    """Return what every mixed request gives by itself, without anything shared or guessed."""
    engine = model.engine(Options(guess=False, share=False))
    return [engine.complete([request])[0] for request in mixed()]


def test_texts_are_the_same_in_company(engine, alone):
    same(engine.complete(mixed()), alone)
    assert engine.counts["chosen"] > engine.counts["steps"]


def test_texts_are_the_same_from_shared_pages(engine, alone):
    engine.complete([request._replace(max_tokens=1) for request in mixed()])
    before = engine.counts["shared"]
    same(engine.complete(mixed()[::-1]), alone[::-1])
    assert engine.counts["shared"] - before >= 64 * (1 + 1 + 2 + 3 + 4)


def test_texts_are_the_same_with_guesses_from_the_text(engine, alone):
    steps, chosen = engine.counts["steps"], engine.counts["chosen"]
    same([engine.complete([request])[0] for request in mixed()], alone)
    assert engine.counts["steps"] - steps < engine.counts["chosen"] - chosen


@pytest.mark.parametrize("same_model", [True, False])
def test_texts_are_the_same_with_a_draft_model(model, alone, same_model):
    draft = model if same_model else build(dataclasses.replace(CONFIG, n_layers=1), seed=5)
    engine = model.engine(draft=draft)
    requests = mixed()[:5]
    same([engine.complete([request])[0] for request in requests], alone[:5])
    if same_model:  # every guess is right: eight tokens a step
        assert engine.counts["steps"] == 5 * 3
    else:
        same(engine.complete(requests), alone[:5])


@pytest.fixture(scope="module")
def narrow(model):
    """Return an engine whose model guesses with its own weights in 8 bits."""
    return model.engine(Options(narrow=True, whole=True))


def test_texts_are_the_same_with_guesses_of_narrow_weights(narrow, alone):
    before = narrow.counts.copy()
    same([narrow.complete([request])[0] for request in mixed()], alone)
    made = narrow.counts - before
    assert made["chosen"] / made["steps"] > 5  # of 8, or 20 / 3 where every guess is right
    same(narrow.complete(mixed()), alone)


def test_narrow_guesses_keep_to_stops_penalties_and_int8_pages(model, narrow):
    texts = prompts([5, 80], 6)
    penalised = Settings(0.8, repetition_penalty=1.3, seed=4)
    for cache, engine in (("", narrow), ("int8", model.engine(Options(narrow=True, cache="int8")))):
        plain = model.engine(Options(guess=False, cache=cache))
        for settings in (GREEDY, penalised):
            (long,) = plain.complete([Request(texts[0], 20, settings)])
            stops = (long.tokens[11],)
            requests = [Request(text, 20, settings, stops) for text in texts]
            for request in requests:
                same(engine.complete([request]), plain.complete([request]))


def test_narrow_weights_guess_by_themselves_only_in_large_dense_models(model, monkeypatch):
    def used(lm):
        return lm.engine()._device._narrows

    assert not used(model)
    monkeypatch.setattr(programs, "_NARROW", 1000)
    assert used(model) and not model.engine(Options(guess=False))._device._narrows
    assert not used(build(dataclasses.replace(CONFIG, n_experts=2, experts_per_token=1)))
    mesh = make_mesh({"data": 1, "tensor": 2}, jax.devices()[:2])
    split = build(CONFIG, mesh=mesh)
    assert not used(split)
    with pytest.raises(ConfigError, match="needs one device and no adapter"):
        split.engine(Options(narrow=True))


@pytest.mark.parametrize("narrow", [False, True])
def test_drawn_tokens_follow_the_models_distribution_with_guesses(narrow):
    """One step's guesses among 8 tokens: chi-square of 1,500 draws against the exact shares."""
    config = dataclasses.replace(CONFIG, vocab_size=8, d_model=16, n_layers=1, max_length=64)
    lm = build(config, scale=0.6)
    engine = lm.engine(Options(narrow=narrow))
    # The first text repeats itself; without that only narrow weights guess.
    prompt = (1, 2, 3, 4, 5, 6) if narrow else (1, 2, 3, 1, 2, 3, 1, 2)
    draws = 1500
    settings = Settings(1.0)
    requests = [Request(prompt, 2, settings._replace(seed=seed)) for seed in range(draws)]
    pairs = [engine.complete([request])[0].tokens for request in requests]
    first = np.asarray(jax.nn.softmax(lm.logits([prompt])[0, -1]))
    assert engine.counts["steps"] < 2 * draws  # some guesses were kept
    texts = [[*prompt, a] for a in range(8)]
    second = np.asarray(jax.nn.softmax(lm.logits(texts)[:, -1]))
    wanted = (first[:, None] * second).reshape(-1) * draws
    got = np.bincount([8 * a + b for a, b in pairs], minlength=64)
    chi = np.sum((got - wanted) ** 2 / wanted)
    assert chi < 63 + 4 * np.sqrt(2 * 63)  # 63 degrees of freedom, four deviations


@pytest.mark.parametrize("narrows", [False, True])
def test_no_program_is_compiled_after_warming_up(model, narrow, narrows):
    engine = narrow if narrows else model.engine(Options(whole=True))
    engine.warm_up()
    before, known = buckets.compiled(), programs._decode._cache_size()
    engine.complete(mixed())
    penalised = Settings(0.7, 5, 0.9, 0.05, 1.3, 3, ((4, 2.0), (9, -1.0)))
    engine.complete([Request(text, 9, penalised, (3, 5)) for text in prompts([5, 80, 210])])
    for request in mixed(3):
        engine.complete([request])
    assert buckets.compiled() == before and programs._decode._cache_size() == known


def test_a_short_request_is_not_blocked_by_long_ones(model):
    engine = faked(model)
    long = engine.submit_all([Request(text, 300) for text in prompts([200, 200])])
    for _ in range(3):
        engine.step()
    short = engine.submit(Request(prompts([10], 3)[0], 3))
    short.result()
    assert not any(handle.reason for handle in long)
    for handle in long:
        handle.cancel()
    engine.step()
    assert engine.running == 0 and {handle.reason for handle in long} == {"cancelled"}


def test_leaving_a_stream_early_frees_its_place(model):
    engine = faked(model)
    for piece in engine.submit(Request((1, 2, 3), 50)):
        assert piece.tokens == [1]
        break
    engine.step()
    assert engine.running == 0


def test_requests_begin_in_their_order_when_room_is_short(model):
    engine = faked(model, rows=2)
    sizes = [300, 5, 5, 300, 5]
    handles = engine.submit_all([Request(text, 4) for text in prompts(sizes)])
    begun = []
    while engine.step():
        now = [text.handle for text in engine._texts if text.handle not in begun]
        begun += now
    order = [handles.index(handle) for handle in begun]
    assert order == sorted(order)
    assert [handle.result().reason for handle in handles] == ["length"] * 5


def test_all_pages_come_back(model):
    engine = faked(model, rows=4, memory=1)
    for _ in range(2):
        handles = engine.submit_all(mixed())
        handles[3].cancel()
        for handle in handles:
            handle.result()
    assert engine._pool.available == engine._pool.count and not engine._pool._users


def test_a_late_request_ends_and_a_full_queue_refuses(model):
    engine = faked(model, queue=2)
    late = engine.submit(Request((1, 2), 400, seconds=1e-9))
    assert late.result() == ([], [], "", "time")
    engine.submit_all([Request((1, 2), 3)] * 2)
    with pytest.raises(QueueFull):
        engine.submit(Request((1, 2), 3))
    while engine.step():
        continue
    assert engine.submit(Request((1, 2), 3)).result().reason == "length"


def test_pieces_arrive_by_async_iteration(engine, alone):
    async def gather(request):
        return [piece async for piece in engine.submit(request)]

    async def all_of_them():
        return await asyncio.gather(*(gather(request) for request in mixed()[:4]))

    streams = asyncio.run(all_of_them())
    got = [[token for piece in pieces for token in piece.tokens] for pieces in streams]
    assert got == [one.tokens for one in alone[:4]]


def test_new_weights_forget_what_was_read(model):
    other = build(CONFIG, seed=9)
    engine = model.engine()
    requests = mixed()[8:10]
    first = engine.complete(requests)
    engine.set_params(other.params)
    second = engine.complete(requests)
    assert [c.tokens for c in second] != [c.tokens for c in first]
    same(second, other.engine().complete(requests))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 40, "window_pattern": "LG", "attention_softcap": 3.0},
        {"position": "alibi"},
        {"position": "learned", "norm": "layernorm", "activation": "gelu", "attention_bias": True},
        {"window": 70, "window_pattern": "L", "attention_sinks": True, "qk_norm": "head"},
        {"n_experts": 4, "experts_per_token": 2},
    ],
)
def test_families_decode_what_full_passes_predict(options):
    config = dataclasses.replace(CONFIG, max_length=320, **options)
    lm = build(config)
    text = prompts([300], 4)[0]
    full = np.asarray(lm.logits([text]))[0]
    params = separate(lm.params)

    @jax.jit
    def run(tokens, start, cache):
        at = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return lm.model.apply({"params": params}, tokens, positions=at, cache=cache)

    cache = PagedCache(init_pages(config, 9), jnp.array([[5, 2, 7, 1, 8, 3, 0, 0]]))
    parts, start = [], 0
    for size in (256, 16, 1, 1):
        logits, cache = run(jnp.asarray([text[start : start + size]]), start, cache)
        parts.append(np.asarray(logits[0]))
        start += size
    np.testing.assert_allclose(np.concatenate(parts), full[:start], atol=2e-5)


def test_integer_pages_take_a_quarter_of_the_room_and_hardly_change_the_text(model, alone):
    engine = model.engine(Options(cache="int8"))
    got = engine.complete(mixed())
    assert init_pages(CONFIG, 1, "int8").k.nbytes * 4 == init_pages(CONFIG, 1).k.nbytes
    first = [(a.logprobs[0], b.logprobs[0]) for a, b in zip(got, alone, strict=True)]
    np.testing.assert_allclose(*zip(*first, strict=True), atol=0.1)


def test_long_contexts_are_read_once_and_score_as_a_full_pass(model):
    context, other = prompts([330, 290], 6)
    ends = prompts([1, 3, 70, 20], 7)
    windows = [Window(list(context), list(end)) for end in ends]
    windows += [Window(list(other), list(ends[1])), Window(list(other[:9]), list(ends[3]))]
    before = buckets.compiled().get("score_pages", 0)
    scores = scoring.score(model.model, model.params, windows)
    assert buckets.compiled()["score_pages"] > before
    for window, got in zip(windows, scores, strict=True):
        text = [*window.context, *window.continuation]
        logits = np.asarray(model.logits([text]), np.float64)[0]
        logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        n = len(window.continuation)
        wanted = [logps[len(text) - n + j - 1, t] for j, t in enumerate(window.continuation)]
        np.testing.assert_allclose(got.logprob, sum(wanted), atol=1e-4)
    for one, got in zip(windows, scores, strict=True):
        assert scoring.score(model.model, model.params, [one]) == [got]


@pytest.mark.parametrize(
    "shape",
    [
        {"tensor": 2, "data": 4},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_what_one_device_gives(alone, shape):
    lm = build(CONFIG, mesh=make_mesh(shape))
    got = lm.engine().complete(mixed())
    assert [one.tokens for one in got] == [one.tokens for one in alone]


def test_a_draft_must_have_the_same_vocabulary(model):
    with pytest.raises(ConfigError, match="The draft has 50 tokens"):
        model.engine(draft=build(dataclasses.replace(CONFIG, vocab_size=50)))


def test_pages_are_named_by_all_tokens_so_far():
    a, b = prompts([200, 200])
    assert len(page_names(a)) == 3 and page_names(a)[:2] == page_names(a[:128])
    assert not set(page_names(a)) & set(page_names(b))
    assert not set(page_names(a)) & set(page_names([b[0], *a[1:]]))


def test_idle_pages_are_forgotten_oldest_first():
    pool = PagePool()
    pool.grow(4)
    pages = pool.take(4)
    for i, page in enumerate(pages):
        pool.publish(bytes([i]), page)
    pool.give_back(pages)
    assert pool.available == 4 and pool.share(b"\0") == pages[0]
    assert pool.take(1) == [pages[1]]
    assert pool.share(b"\1") is None and pool.share(b"\2") == pages[2]
    pool.forget()
    pool.give_back([*pages[:3]])
    assert pool.available == 4 and pool.share(b"\0") is None
    assert PAGE == 64
