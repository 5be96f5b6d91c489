# SPDX-License-Identifier: Apache-2.0
import re
import subprocess
import sys

from llm import files
from llm.core.checkpoint_files import Leaf
from llm.report.model_card import write_model_card

MODEL = {
    "architecture": "decoder",
    "n_layers": 3,
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "max_length": 256,
    "vocab_size": 512,
}


def make_run(root, name, objective, steps):
    folder = root / name
    config = {
        "model": MODEL,
        "objective": {"name": objective},
        "optimizer": {"name": "adamw"},
        "train": {"batch_size": 8},
        "data": {"source": "documents", "path": "runs/corpus", "length": 64},
    }
    files.write_json(folder / "config.json", config)
    files.write_atomic(folder / "metrics.jsonl", f'{{"step": {steps}, "train/loss": 2.0}}\n')
    files.write_json(folder / "rows/data/train/manifest.json", {"rows": 10, "tokens": 600})
    return folder


def make_evaluation(root):
    folder = root / "eval"
    tasks = [
        {
            "task": "which_function",
            "kind": "which_function",
            "n": 200,
            "metrics": {
                "acc": {
                    "value": 0.27,
                    "stderr": 0.031,
                    "interval": [0.213, 0.335],
                    "chance": 0.25,
                    "above_chance": False,
                }
            },
        },
        {"task": "text", "n": 9, "metrics": {"bits_per_byte": {"value": 1.5, "stderr": 0.1}}},
    ]
    for task in tasks:
        files.write_json(folder / f"results/{task['task']}.json", task)
    return folder


def test_the_card_tells_what_was_recorded(tmp_path, monkeypatch):
    from llm.report import model_card

    leaf = [Leaf(("a",), (10, 3), "float32"), Leaf(("b",), (7,), "float32")]
    runs = [make_run(tmp_path, "pretrain", "clm", 500), make_run(tmp_path, "dpo", "dpo", 40)]
    monkeypatch.setattr(
        model_card.checkpoint_files, "survey", lambda run: type("L", (), {"steps": [1]})
    )
    monkeypatch.setattr(
        model_card.checkpoint_files,
        "read_manifest",
        lambda step: type("M", (), {"entries": {"params": leaf}}),
    )
    corpus = tmp_path / "corpus"
    shards = [{"split": "train", "count": 12, "bytes": 3456}]
    files.write_json(corpus / "documents/manifest.json", {"shards": shards})
    files.write_atomic(corpus / "datasheet.md", "# Datasheet")
    card = write_model_card(
        tmp_path / "MODEL_CARD.md",
        name="Small one",
        training=runs,
        evaluation=make_evaluation(tmp_path),
        corpus=corpus,
        licence="Apache-2.0",
    )
    text = card.read_text()
    assert text.startswith("# Small one\n")
    for expected in (
        "| Parameters | 37 |",
        "3 layers, width 32, 4 heads sharing 2 key-value heads",
        "| pretrain | next-token prediction | 500 | 240,000 | adamw |",
        "| dpo | direct preference optimisation (DPO) | 40 | 19,200 | adamw |",
        "| which_function | acc | 0.27 | 0.213 – 0.335 | 0.25 | 200 |",
        "| text | bits_per_byte | 1.5 | 1.304 – 1.696 | – | 9 |",
        "corpus, train: 12 documents, 3,456 bytes",
        "On which_function (acc) it is not distinguishable from chance.",
        "datasheet.md",
        "Apache-2.0",
        f'llm.load("{runs[-1]}")',
    ):
        assert expected in text, expected
    assert not re.search(r"TBD|TODO|N/A|None|\{|\bnan\b", text.replace("{{", ""))


def test_a_card_of_nothing_claims_nothing(tmp_path):
    text = write_model_card(tmp_path / "card.md", name="x", training=[tmp_path / "no"]).read_text()
    assert "has not been evaluated" in text
    assert "no licence has been declared" in text
    assert "Parameters" not in text


def test_no_jax():
    code = (
        "import sys, llm.report.model_card; "
        "assert not {'jax', 'tensorflow', 'seqio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
