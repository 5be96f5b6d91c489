# SPDX-License-Identifier: Apache-2.0
"""Documents, chats and preferences become the rows they should."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

import llm.tokenizers
from llm.data import prepare, rows
from llm.errors import ConfigError, DataError, UserError
from llm.tokenizers import charlevel, sentencepiece

BYTE = llm.tokenizers.load("byte")
DOCUMENTS = [{"id": str(i), "text": f"text {i} é " * (i % 9)} for i in range(60)]
TEXTS = [document["text"] for document in DOCUMENTS if document["text"]]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"{i}?"},
            {"role": "assistant", "content": "yes " * (i % 5 + 1)},
        ]
    }
    for i in range(40)
]


def everything(folder):
    data = rows.open_rows(folder)
    return data.take(np.arange(len(data)))


def segments(batch):
    """Yield (tokens, targets, weights) of every segment."""
    for index in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][index].max() + 1):
            mine = batch["segments"][index] == segment
            yield tuple(batch[name][index][mine] for name in ("tokens", "targets", "weights"))


def test_documents_by_hand(tmp_path):
    manifest = prepare.prepare_documents([{"text": "abc"}, {"text": "d"}], BYTE, 4, tmp_path / "r")
    batch = everything(tmp_path / "r")
    a, b, c, d = BYTE.encode("abcd")
    np.testing.assert_array_equal(batch["tokens"], [[1, a, b, c], [1, d, 0, 0]])
    np.testing.assert_array_equal(batch["targets"], [[a, b, c, 2], [d, 2, 0, 0]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2, 3], [0, 1, 0, 0]])
    assert manifest["bytes_of_text"] == 4 and manifest["tokens"] == 6 and manifest["rows"] == 2
    assert manifest["tokenizer_hash"] == BYTE.hash


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_targets_are_the_whole_text_once(tmp_path, kind):
    tokenizer = {
        "byte": lambda: BYTE,
        "char": lambda: charlevel.train(TEXTS),
        "bpe": lambda: sentencepiece.train(TEXTS * 5, vocab_size=300),
    }[kind]()
    manifest = prepare.prepare_documents(DOCUMENTS, tokenizer, 32, tmp_path / "r")
    batch = everything(tmp_path / "r")
    learned = batch["targets"][batch["weights"] > 0]
    assert tokenizer.decode(learned, skip_special=False) == "</s>".join([*TEXTS, ""])
    assert manifest["bytes_of_text"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest["counts"]["empty_dropped"] == len(DOCUMENTS) - len(TEXTS)
    assert manifest["examples"] == len(TEXTS)


def test_rows_are_used_again_only_for_the_same_input(tmp_path):
    place = tmp_path / "r"
    first = prepare.prepare_documents(DOCUMENTS, BYTE, 32, place)
    stamp = (place / "manifest.json").stat().st_ino
    assert prepare.prepare_documents(DOCUMENTS, BYTE, 32, place) == first
    assert (place / "manifest.json").stat().st_ino == stamp
    changed = [
        (DOCUMENTS[1:], BYTE, 32),
        (DOCUMENTS, charlevel.train(TEXTS), 32),
        (DOCUMENTS, BYTE, 16),
    ]
    hashes = {first["config_hash"]}
    for documents, tokenizer, length in changed:
        hashes.add(prepare.prepare_documents(documents, tokenizer, length, place)["config_hash"])
    assert len(hashes) == 4
    counted = prepare.prepare_documents(iter(DOCUMENTS), BYTE, 32, place, source_hash="mine")
    assert counted["fingerprint"] == first["fingerprint"]


def test_splits_of_a_documents_folder(tmp_path):
    shards = []
    for split, part in (("train", DOCUMENTS[:50]), ("validation", DOCUMENTS[50:])):
        kept = [document for document in part if document["text"]]
        (tmp_path / f"{split}-0.jsonl").write_text("\n".join(map(json.dumps, kept)))
        shards.append({"file": f"{split}-0.jsonl", "split": split})
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards}))
    found = {
        split: prepare.prepare_documents(tmp_path, BYTE, 32, tmp_path / "rows" / split, split=split)
        for split in ("train", "validation")
    }
    expected = [
        prepare.prepare_documents(part, BYTE, 32, tmp_path / "x")
        for part in (DOCUMENTS[:50], DOCUMENTS[50:])
    ]
    assert [m["fingerprint"] for m in found.values()] == [m["fingerprint"] for m in expected]
    assert found["train"]["config_hash"] != found["validation"]["config_hash"]


def test_chats_stay_whole_and_only_answers_count(tmp_path):
    manifest = prepare.prepare_chats(CHATS, BYTE, 64, tmp_path / "r")
    found = set()
    for tokens, targets, weights in segments(everything(tmp_path / "r")):
        found.add(BYTE.decode([tokens[0], *targets], skip_special=False))
        learned = BYTE.decode(targets[weights > 0], skip_special=False)
        assert learned.startswith("yes ") and learned.endswith("<|end|>")
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
    assert found == {BYTE.apply_chat_template(chat["messages"]) for chat in CHATS}
    answers = sum(len(chat["messages"][1]["content"]) for chat in CHATS)
    assert manifest["bytes_of_text"] == answers and manifest["examples"] == 40
    whole = prepare.prepare_chats(CHATS, BYTE, 64, tmp_path / "all", assistant_only=False)
    assert whole["weight"] == whole["tokens"] > manifest["weight"]


def test_long_chats_are_dropped_or_truncated_and_counted(tmp_path):
    dropped = prepare.prepare_chats(CHATS, BYTE, 20, tmp_path / "r")
    assert dropped["counts"]["too_long_dropped"] + dropped["examples"] == 40
    cut = prepare.prepare_chats(CHATS, BYTE, 20, tmp_path / "r", too_long="truncate")
    assert cut["examples"] == 40 and cut["counts"]["truncated"] == 40 - dropped["examples"]
    with pytest.raises(DataError, match="no rows"):
        prepare.prepare_chats(CHATS, BYTE, 3, tmp_path / "r", too_long="truncate")
    with pytest.raises(ConfigError, match="truncate"):
        prepare.prepare_chats(CHATS, BYTE, 20, tmp_path / "r", too_long="truncat")


PAIRS = [
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    },
    {
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
    },
]


@pytest.mark.parametrize("pair", PAIRS)
def test_preferences_in_every_form(tmp_path, pair):
    manifest = prepare.prepare_preferences([pair], BYTE, 16, tmp_path / "r")
    batch = everything(tmp_path / "r")
    for side, answer in (("chosen", "good"), ("rejected", "bad")):
        used = batch[f"{side}_segments"][0] > 0
        tokens, targets = batch[f"{side}_tokens"][0][used], batch[f"{side}_targets"][0][used]
        text = BYTE.decode(tokens, skip_special=False)
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        assert text == f"<s><|user|>q<|end|><|assistant|>{answer}<|end|>"
        learned = targets[batch[f"{side}_weights"][0][used] > 0]
        assert BYTE.decode(learned, skip_special=False) == f"{answer}<|end|>"
    assert manifest["rows"] == 1 and len(manifest["fields"]) == 11


def test_earlier_answers_of_a_preference_have_no_weight(tmp_path):
    prompt = [*CHATS[0]["messages"], {"role": "user", "content": "and?"}]
    pair = {"prompt": prompt, "chosen": "good", "rejected": "bad"}
    prepare.prepare_preferences([pair], BYTE, 64, tmp_path / "r")
    batch = everything(tmp_path / "r")
    learned = batch["chosen_targets"][0][batch["chosen_weights"][0] > 0]
    assert BYTE.decode(learned) == "good"


def test_text_is_cut_into_contiguous_blocks(tmp_path):
    text = "To be, or not to be — that is the question.\n" * 30
    (tmp_path / "play.txt").write_text(text)
    tokenizer = charlevel.train([text])
    found = prepare.prepare_text(tmp_path / "play.txt", tokenizer, 16, tmp_path / "rows")
    ids = tokenizer.encode(text)
    cut = round(len(text) * 0.9)
    for split, part in (("train", ids[:cut]), ("validation", ids[cut:])):
        batch = everything(tmp_path / "rows" / split)
        used = batch["weights"].ravel() > 0
        np.testing.assert_array_equal(batch["tokens"].ravel()[used], part[:-1])
        np.testing.assert_array_equal(batch["targets"].ravel()[used], part[1:])
        learned = tokenizer.decode(part[1:])
        assert found[split]["bytes_of_text"] == len(learned.encode())
        assert batch["positions"].max() == 15 and batch["segments"].max() == 1


def test_jsonl_files_are_read_and_checked(tmp_path):
    lines = "\n".join(map(json.dumps, CHATS))
    (tmp_path / "c.jsonl").write_text(lines + "\n\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    one = prepare.prepare_chats(tmp_path / "c.jsonl", BYTE, 64, tmp_path / "a")
    two = prepare.prepare_chats(tmp_path / "c.jsonl.gz", BYTE, 64, tmp_path / "b")
    three = prepare.prepare_chats(CHATS, BYTE, 64, tmp_path / "c")
    assert one["fingerprint"] == two["fingerprint"] == three["fingerprint"]
    (tmp_path / "c.jsonl").write_text('{"messages": []}\nnot json\n')
    with pytest.raises(UserError, match="no list of messages"):
        prepare.prepare_chats(tmp_path / "c.jsonl", BYTE, 64, tmp_path / "d")
    (tmp_path / "c.jsonl").write_text(lines + "\n[1]\n")
    with pytest.raises(DataError, match="line 41 is not a JSON object"):
        prepare.prepare_chats(tmp_path / "c.jsonl", BYTE, 64, tmp_path / "d")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-20])
    with pytest.raises(DataError, match="damaged"):
        prepare.prepare_chats(tmp_path / "c.jsonl.gz", BYTE, 64, tmp_path / "d")
    with pytest.raises(DataError, match="does not exist"):
        prepare.prepare_chats(tmp_path / "none.jsonl", BYTE, 64, tmp_path / "d")


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda d: prepare.prepare_documents([], BYTE, 8, d), "no rows"),
        (lambda d: prepare.prepare_documents([{"text": ""}], BYTE, 8, d), "no rows"),
        (lambda d: prepare.prepare_documents([{"id": "7"}], BYTE, 8, d), "7.* has no text"),
        (lambda d: prepare.prepare_documents(d / "none", BYTE, 8, d), "none"),
        (lambda d: prepare.prepare_chats([{"text": "x"}], BYTE, 8, d), "no list of messages"),
        (lambda d: prepare.prepare_preferences([{"prompt": "x"}], BYTE, 8, d), "no 'chosen'"),
        (lambda d: prepare.prepare_text(d / "none.txt", BYTE, 8, d), "does not exist"),
        (lambda d: prepare.prepare_documents([{"text": "x"}], BYTE, 0, d), r"data\.length"),
    ],
)
def test_wrong_input_is_refused(tmp_path, call, problem):
    with pytest.raises(DataError, match=problem):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_another_tokenizer_are_refused(tmp_path):
    manifest = prepare.prepare_documents(DOCUMENTS, BYTE, 32, tmp_path)
    prepare.check_tokenizer(manifest, BYTE, tmp_path)
    with pytest.raises(DataError, match="another tokenizer"):
        prepare.check_tokenizer(manifest, charlevel.train(TEXTS), tmp_path)


def test_no_heavy_imports():
    program = (
        "import sys, llm.data.feed, llm.data.rows, llm.data.packing, llm.data.prepare;"
        "print([m for m in ('jax', 'tensorflow', 'seqio', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
