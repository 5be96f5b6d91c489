# SPDX-License-Identifier: Apache-2.0
"""Where post-training rows come from: formats, splits by prompt, single answers, references."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import llm
from llm import main, tokenizers
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.core.sharding import unbox
from llm.data import prepare, rows
from llm.errors import ConfigError, DataError
from llm.generate import loading
from llm.models.config import TransformerConfig
from llm.models.layers import embed_noise
from llm.models.transformer import Transformer
from llm.posttrain import formats, preference, reference
from llm.posttrain import rows as sources
from llm.tokenizers import base as bases

ROOT = Path(__file__).resolve().parents[2]
BYTE = tokenizers.load("byte")
SHAPE = TransformerConfig(
    vocab_size=BYTE.vocab_size, n_layers=1, d_model=32, n_heads=2, d_ff=64, max_length=64
)
FRAME = "Below is an instruction. Answer.\n\n### Instruction:\nq\n\n### Response:\n"
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: and?\n\nAssistant: "


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, [("user", "q")]),
        (
            {"instruction": "q", "input": "x", "output": "a"},
            [("user", "q\n\nx"), ("assistant", "a")],
        ),
        (
            {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"instruction": "q", "context": "c", "response": "a"},
            [("user", "q\n\nc"), ("assistant", "a")],
        ),
        ({"prompt": FRAME, "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [("user", "q"), ("assistant", "a")],
        ),
    ],
)
def test_chats_as_others_publish_them(record, expected):
    (found,) = formats.convert([record])
    assert [(m["role"], m["content"]) for m in found["messages"]] == expected


def test_dialogues_with_two_endings():
    pair = {"chosen": HH + "good", "rejected": HH + "bad"}
    (found,) = formats.convert([pair])
    assert [m["role"] for m in found["prompt"]] == ["user", "assistant", "user"]
    assert found["chosen"] == [{"role": "assistant", "content": "good"}]
    assert found["rejected"] == [{"role": "assistant", "content": "bad"}]
    apart = {"chosen": HH + "good", "rejected": HH.replace("and", "but") + "bad"}
    silent = {"chosen": HH + "good", "rejected": HH}
    assert not list(formats.convert([apart, silent, {"chosen": HH + "x", "rejected": HH + "x"}]))


def test_wrong_formats_are_named():
    with pytest.raises(ConfigError, match=r"data.format"):
        list(formats.convert([{}], "alpace"))
    with pytest.raises(DataError, match="Record 0 is not of the format 'dolly'"):
        list(formats.convert([{"instruction": "q"}], "dolly"))


def test_no_prompt_is_in_both_splits(tmp_path):
    records = [{"prompt": f"q{i % 20}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(100)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    train, held = (
        {r["prompt"] for r in sources.part(str(path), split, 0.3)}
        for split in ("train", "validation")
    )
    assert train and held and not train & held and len(train | held) == 20
    chats = {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    chats["rejected"] = [chats["chosen"][0], {"role": "assistant", "content": "b"}]
    assert sources.prompt_of(chats) == chats["chosen"][:1]


def _texts(batch, prefix):
    used = batch[f"{prefix}segments"] > 0
    learned = batch[f"{prefix}weights"] > 0
    return [
        (BYTE.decode(tokens[u]), BYTE.decode(targets[w], skip_special=False))
        for tokens, targets, u, w in zip(
            batch[f"{prefix}tokens"], batch[f"{prefix}targets"], used, learned, strict=True
        )
    ]


def test_single_answers_stand_beside_another_promts_answer(tmp_path):
    records = [
        {"prompt": "1", "completion": "one", "label": True},
        {"prompt": "2", "chosen": "two", "rejected": "too"},
    ]
    made = prepare.prepare_answers(records, BYTE, 32, tmp_path)
    batch = rows.open_rows(tmp_path).take(np.arange(made["rows"]))
    assert batch["labels"].tolist() == [1, 1, 0]
    assert [t for t, _ in _texts(batch, "")] == ["1one", "2two", "2too"]
    assert [t for t, _ in _texts(batch, "kl_")] == ["1too", "2one", "2two"]
    assert all(t.endswith("<|end|>") for _, t in _texts(batch, ""))
    with pytest.raises(DataError, match="no label"):
        bad = [{"prompt": "1", "completion": "one", "label": 1}]
        prepare.prepare_answers(bad, BYTE, 32, tmp_path / "bad")


def test_the_stop_token_is_learned_even_where_it_is_padding(tmp_path):
    """Of a tokenizer whose padding is its end-of-turn token, as SmolLM2's is."""
    stop = BYTE.special_tokens["<|end|>"]
    same = bases.Tokenizer(
        BYTE.codec,
        special_tokens=BYTE.special_tokens,
        bos_id=BYTE.bos_id,
        eos_id=stop,
        pad_id=stop,
        chat_template=BYTE.chat_template,
    )
    chats = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * n}]}
        for n in (1, 2, 3)
    ]
    prepare.prepare_chats(chats, same, 24, tmp_path)
    data = rows.open_rows(tmp_path)
    batch = data.take(np.arange(len(data)))
    learned = batch["targets"][batch["weights"] > 0]
    assert (learned == stop).sum() == 3
    assert batch["weights"][batch["segments"] == 0].sum() == 0


def test_noise_on_embeddings_follows_the_length_of_each_text():
    keys = jax.random.split(jax.random.key(0), 2)
    segments = np.array([[1] * 4 + [2] * 12, [1] * 10 + [0] * 6])
    x = np.zeros((2, 16, 512), np.float32)
    noise = np.asarray(embed_noise(x, 5.0, keys, segments))
    for part, length in ((noise[0, :4], 4), (noise[0, 4:], 12), (noise[1, :10], 10)):
        bound = 5 / np.sqrt(length * 512)
        assert 0.98 * bound < np.abs(part).max() <= bound
        np.testing.assert_allclose(part.std(), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_array_equal(embed_noise(x, 5.0, None, segments), x)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    params = unbox(Transformer(SHAPE).init(jax.random.key(0), np.zeros((1, 8), int))["params"])
    place = tmp_path_factory.mktemp("base") / "base"
    loading.assemble(SHAPE, params, BYTE, starts_texts=True).save(place)
    return place


def _digits(path, count=120):
    """Write single answers: digits from 5 are liked."""
    rng = np.random.default_rng(0)
    records = [
        {"prompt": f"{i}?", "completion": str(d), "label": bool(d > 4)}
        for i, d in enumerate(rng.integers(0, 10, count).tolist())
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def test_a_kto_run_with_the_reference_in_its_rows(base, tmp_path):
    config = configs.load_file(str(ROOT / "configs" / "posttrain" / "kto.py"))
    config.init["from"] = str(base)
    config.data = {"source": "answers", "length": 24, "validation": 0.2}
    config.data.path = _digits(tmp_path / "answers.jsonl")
    config.objective.update(reference="rows", beta=1.0)
    config.schedule.peak = 2e-2
    config.model.embed_noise = 1.0
    config.train.update(steps=30, batch_size=16, eval_every=30, eval_first=True, log_every=10)
    config.sampling.every = 0
    config.checkpoint.every = 30
    main.train(config, str(tmp_path / "run"))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    first, last = (
        [r[f"eval/validation/{k}"] for r in lines if f"eval/validation/{k}" in r]
        for k in ("reward_chosen", "reward_rejected")
    )
    assert abs(first[0]) < 1e-4 and abs(last[0]) < 1e-4  # the reference is where it starts
    assert first[-1] - last[-1] > 0.5
    assert llm.load(str(tmp_path / "run")).config.embed_noise == 0


def test_a_reference_in_the_rows_is_the_reference(base, tmp_path):
    lm = llm.load(str(base))
    pairs = [{"prompt": "q" * i, "chosen": "good", "rejected": "bad"} for i in range(1, 6)]
    prepare.prepare_preferences(pairs, BYTE, 24, tmp_path / "train")
    plain = rows.open_rows(tmp_path / "train")
    (made,) = reference.with_logps({"train": plain}, lm, batch_size=4).values()
    batch = made.take(np.arange(5))
    assert batch["chosen_logps"].shape == (5,) and made.fingerprint != plain.fingerprint
    moved = jax.tree.map(lambda p: p * 1.1, lm.params)
    for build in (preference.dpo, preference.ipo):
        copied, stored = (
            build(lm.model, reference=kind).loss(moved, lm.params, batch, None)["loss"][0]
            for kind in ("start", "rows")
        )
        np.testing.assert_allclose(stored, copied, rtol=1e-5)
    again = reference.with_logps({"train": plain}, lm, batch_size=4)["train"]
    assert again.fingerprint == made.fingerprint
    with pytest.raises(ConfigError, match="start from"):
        reference.with_logps({"train": plain}, None)


def test_documents_are_mixed_in_against_forgetting(base, tmp_path):
    """Chats and pre-training text in one run, by weight."""
    chats = [{"question": f"q{i}", "answer": "a"} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    documents = [{"id": str(i), "text": f"plain text {i}"} for i in range(40)]
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    config = configs.load_file(str(ROOT / "configs" / "posttrain" / "tiny.py"))
    config.init["from"] = str(base)
    config.data.mixture = {
        "chats": {"source": "chats", "path": str(tmp_path / "chats.jsonl"), "weight": 0.75},
        "text": {"source": "documents", "path": str(tmp_path / "documents.jsonl"), "weight": 0.25},
    }
    config.data.mixture.text.validation = 0.0
    config.data.length = 32
    main.check_training(config)
    start = llm.load(str(base))
    feed, _ = main._rows(config, str(tmp_path / "run"), BYTE, SHAPE.vocab_size, start)
    names = [name for step in range(128) for name, _ in feed.ids(step)]
    assert names.count("text") == len(names) // 4
    batch = feed.batch(0)
    assert set(batch) == {"tokens", "targets", "weights", "segments", "positions"}
