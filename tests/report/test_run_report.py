# SPDX-License-Identifier: Apache-2.0
"""Reports of one run and of a whole life, from files written as the stages write them."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from llm.report.life import life_report
from llm.report.run_report import run_report

VOID = {"meta", "input", "br", "link"}


class Checker(HTMLParser):
    """Collect text and attributes, and insist that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    page = Checker()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    return page


def make_run(root, steps=120, metric="bits_per_byte"):
    (root / "results").mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        loss = 2.0 + 5.0 * math.exp(-step / 20)
        lines.append(
            {
                "step": step,
                "time": 0.5 * step,
                "train/loss": loss,
                "train/nll": loss,
                "train/lr": 1e-3,
                "train/grad_norm": 1.0,
                "train/skipped": 0.0,
                "perf/tokens_per_s": 1000.0,
                "perf/mfu": 0.4,
                "perf/goodput": 0.9,
            }
        )
        if step % 40 == 0:
            lines.append(
                {
                    "step": step,
                    "time": 0.5 * step,
                    "eval/validation/loss": loss + 0.1,
                    "eval/validation/perplexity": math.exp(loss + 0.1),
                    f"eval/validation/{metric}": 0.7,
                }
            )
    (root / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    samples = [
        {"step": s, "prompt": "def f(", "text": f"<script>alert({s})</script>"}
        for s in (40, 80, 120)
    ]
    (root / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in samples))
    config = {
        "seed": 0,
        "model": {"d_model": 64, "n_layers": 2, "rope_theta": 10000.0, "qk_norm": "head"},
        "objective": {"name": "clm"},
        "data": {"length": 128, "path": "</style><b>"},
        "train": {"batch_size": 8, "steps": steps},
        "tracker": {"api_key": "do-not-show"},
    }
    (root / "config.json").write_text(json.dumps(config))
    return root


def add_results(root):
    (root / "results").mkdir(parents=True, exist_ok=True)
    entries = {
        "choice": {
            "task": "which_function",
            "n": 300,
            "metrics": {
                "acc": {"value": 0.5, "stderr": 0.03, "interval": [0.44, 0.56], "chance": 0.25}
            },
            "items": [
                {"question": "Q?", "options": ["<a>", "b"], "gold": 1, "prediction": 0},
            ],
        },
        "perplexity": {
            "task": "perplexity",
            "n": 40,
            "metrics": {"bits_per_byte": {"value": 1.5, "stderr": 0.01}},
        },
        "ngram": {
            "task": "seen_tokens",
            "kind": "kneser_ney",
            "n": 40,
            "metrics": {"bits_per_byte": {"value": 1.9, "stderr": None}},
        },
    }
    for name, entry in entries.items():
        (root / "results" / f"{name}.json").write_text(json.dumps(entry))
    return root


def test_report_of_one_run(tmp_path):
    run = make_run(tmp_path / "pretrain")
    out = run_report(run, related=[add_results(tmp_path / "eval")])
    page = parse(out)
    text = " ".join(page.text)
    for shown in (
        "How training went",
        "by wall time",
        "What the model writes",
        "Bits per byte",
        "40.0",
        "goodput 90%",
        "which function",
        "above",
        "0.44 – 0.56",
        "seen tokens",
    ):
        assert shown in text
    assert "Negative log-likelihood" not in text  # the same curve as the loss
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_injected(tmp_path):
    run = make_run(tmp_path / "run")
    out = run_report(run, png=False)
    page = parse(out)
    source = out.read_text()
    assert "do-not-show" not in source
    assert source.count("<script") == 1
    assert source.count("</style>") == 1
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object")
        for name in ("src", "href", "data"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    assert not re.search(r"@import|url\(", source)


def test_the_same_files_give_the_same_page(tmp_path):
    run = make_run(tmp_path / "run")
    first = run_report(run, png=False).read_bytes()
    code = f"from llm.report.run_report import run_report; run_report({str(run)!r}, png=False)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (run / "report.html").read_bytes() == first


@pytest.mark.parametrize("content", [{}, {"metrics.jsonl": '{"step": 1, "train/loss": 3.0}\n'}])
def test_little_is_enough(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    parse(run_report(tmp_path))


def test_bad_steps_are_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": null, "train/non_finite": 1.0, "train/skipped": 1.0}\n'
    )
    assert "1 step had a loss" in " ".join(parse(run_report(tmp_path)).text)


def test_spikes_and_roll_backs_are_said(tmp_path):
    lines = [
        {"step": 10, "time": 2.0, "train/loss": 2.0, "train/spikes": 1.0, "time/steps": 2.0},
        {"step": 10, "time": 4.0, "train/rolled_back_from": 14, "train/spike_loss": 40.0},
        {"step": 20, "time": 6.0, "train/loss": 1.0, "time/steps": 4.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join(parse(run_report(tmp_path)).text)
    assert "spiked at 1 step." in text
    assert "A spike at step 14 sent training back to step 10" in text


def test_rollouts_and_what_the_monitors_say_of_them(tmp_path):
    lines = [{"step": 0, "time": 1.0, "eval/validation/reward": 0.1}]
    for step in (20, 40, 60):
        figures = {"reward": 0.2, "reward_model": 0.2, "reward_exact": 0.4, "kl": 0.3, "gold": 0.4}
        line = {f"rollout/{name}": value + step / 100 for name, value in figures.items()}
        line |= {"step": step, "time": 1.0 + step, "rollout/seconds": 2.0, "rollout/signs": 0.0}
        lines.append({**line, **({"rollout/sign_gold": 1.0} if step == 40 else {})})
    lines.append({"step": 60, "time": 61.0, "eval/validation/reward": 0.9})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join(parse(run_report(tmp_path)).text)
    assert "From step 40 on a monitor says: the reward rises and the gold reward falls." in text
    for shown in ("Exact answers", "KL divergence from the reference", "rollouts", "from 0.1"):
        assert shown in text
    for hidden in ("Reward model", "Gold", "Seconds", "Sign"):  # the only reward, or no curve
        assert hidden not in text
    answers = [{"step": s, "prompt": "max 31", "text": "3", "chat": True} for s in (0, 60)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in answers))
    assert "\n3" in parse(run_report(tmp_path)).text
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[1]) + "\n")
    assert "monitor" not in " ".join(parse(run_report(tmp_path)).text)


def test_report_of_a_whole_life(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "documents").mkdir(parents=True)
    manifest = {"shards": [{"file": "a", "split": "train", "count": 1200, "bytes": 3_000_000}]}
    (corpus / "documents" / "manifest.json").write_text(json.dumps(manifest))
    (corpus / "report.html").write_text("x")
    tokenizer = tmp_path / "tokenizer" / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "meta.json").write_text('{"vocab_size": 2048}')
    fertility = {"all": {"bytes_per_token": 3.2}, "sources": {"stdlib": {"bytes_per_token": 3.1}}}
    (tmp_path / "tokenizer" / "fertility.json").write_text(json.dumps(fertility))
    make_run(tmp_path / "pretrain")
    make_run(tmp_path / "dpo", metric="reward_accuracy")
    add_results(tmp_path / "eval")
    names = ("corpus", "tokenizer", "pretrain", "dpo", "eval", "serve")
    out = life_report({n: tmp_path / n for n in names}, tmp_path / "out" / "report.html")
    page = parse(out)
    text = " ".join(page.text)
    for shown in (
        "From 1200 documents to a model of 1.5 bits per byte in 5 stages",
        "2048",
        "tokens, 3.2 bytes each",
        "70 %",
        "reward accuracy",
        "chance 25 %",
        "Beside simple methods",
        "this model",
        "Nothing was found of: serve",
    ):
        assert shown in text
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert "../corpus/report.html" in links
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors == set(names) - {"serve"} <= set(page.ids)


def test_an_empty_life(tmp_path):
    out = life_report({"corpus": tmp_path / "none"}, tmp_path / "r.html")
    assert "No stage has written anything yet" in " ".join(parse(out).text)


def test_reports_need_no_jax():
    code = (
        "import sys, llm.report.life, llm.report.run_report, llm.report.plots\n"
        "sys.exit(any(m in sys.modules for m in ('jax', 'tensorflow', 'seqio', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
