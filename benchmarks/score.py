# SPDX-License-Identifier: Apache-2.0
"""Measure log-likelihoods of multiple-choice items: speed, and whether company changes a value.

Command:  python benchmarks/score.py MODEL ITEMS.jsonl [--items=64] [--transformers=PYTHON]
ITEMS:    {"query", "choices", "gold"} a line, as the PIQA and ARC files of llm-foundry.
PYTHON:   the interpreter of an environment with torch and transformers; the peer scores the same
          token ids one request at a time, and in padded batches of 16.

Prints requests per second (compilation apart), the largest difference of a value between batches
of 1, 7 and 32 shuffled, and the largest difference from the peer.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llm
from llm.generate import scoring

TRANSFORMERS = """
import json, sys, time, torch, transformers
folder, windows = sys.argv[1], json.load(open(sys.argv[2]))
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
def score(group):
    rows = [(c + w)[:-1] for c, w in group]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    with torch.no_grad():
        logps = model(ids, attention_mask=mask).logits.float().log_softmax(-1)
    return [float(sum(logps[i, len(c) - 1 + j, t] for j, t in enumerate(w)))
            for i, (c, w) in enumerate(group)]
out = {}
for size in (1, 16):
    score(windows[:size]); started = time.perf_counter()
    out[str(size)] = [v for i in range(0, len(windows), size) for v in score(windows[i:i + size])]
    out[f"rate {size}"] = len(windows) / (time.perf_counter() - started)
print(json.dumps(out))
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure scoring.")
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--transformers", default="", help="a Python that has transformers")
    return parser.parse_args(argv)


def pairs(file: str, count: int) -> list[tuple[str, str]]:
    """Return (context, continuation) of every choice of the first items."""
    items = [json.loads(line) for line in Path(file).read_text().splitlines()[:count]]
    return [(item["query"], f" {choice}") for item in items for choice in item["choices"]]


def differences(lm: Any, requests: list[tuple[str, str]], wanted: list[float]) -> float:
    """Score in batches of 1, 7 and 32, shuffled; return the largest change of a value."""
    order = list(range(len(requests)))
    worst = 0.0
    for size in (1, 7, 32):
        random.Random(size).shuffle(order)
        got = lm.loglikelihood([requests[i] for i in order], max_batch=size)
        worst = max(worst, *(abs(v - wanted[i]) for (v, _), i in zip(got, order, strict=True)))
    return worst


def main(argv: list[str]) -> None:
    """Measure and compare."""
    options = parse(argv)
    lm = llm.load(options.model)
    requests = pairs(options.file, options.items)
    lm.loglikelihood(requests)
    started = time.perf_counter()
    values = [value for value, _ in lm.loglikelihood(requests)]
    rate = len(requests) / (time.perf_counter() - started)
    print(f"jax-llm: {rate:.1f} requests/s over {len(requests)}")
    print(f"largest change at batch 1, 7, 32 shuffled: {differences(lm, requests, values):.1e}")
    if not options.transformers:
        return
    windows = [scoring.encode_pair(lm.tokenizer, *pair) for pair in requests]
    with tempfile.TemporaryDirectory() as folder:
        lm.save(Path(folder) / "model", format="hf")
        Path(folder, "windows.json").write_text(json.dumps(windows))
        command = [options.transformers, "-c", TRANSFORMERS, f"{folder}/model"]
        done = subprocess.run(
            [*command, f"{folder}/windows.json"], capture_output=True, text=True, check=True
        )
    peer = json.loads(done.stdout.splitlines()[-1])
    for size in ("1", "16"):
        other = peer[f"rate {size}"]
        print(f"transformers, batches of {size}: {other:.1f} requests/s; ratio {rate / other:.2f}")
    apart = max(abs(a - b) for a, b in zip(values, peer["1"], strict=True))
    print(f"largest difference from transformers: {apart:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
