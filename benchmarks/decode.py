# SPDX-License-Identifier: Apache-2.0
"""Measure decoding: one stream, several streams, and reading a prompt, beside other software.

Command:  python benchmarks/decode.py MODEL [--runs=3] [--tokens=64]
              [--transformers=PYTHON] [--llama=PYTHON --gguf=FILE] [--identity=200]
MODEL:    what `llm.load` opens (a workdir, a Hugging Face folder or a .gguf file).
PYTHON:   the interpreter of an environment with torch and transformers, or with llama-cpp-python;
          transformers gets the same weights as a temporary Hugging Face folder.

Prints one line per figure: the median of the runs and their lowest and highest. Compilation, or a
first run elsewhere, is not counted. Greedy; stop tokens are ignored, so that all texts are equally
long. llama.cpp's 16 streams are one batch of 16 sequences, as its server would make of 16 clients.
"guesses" are tokens looked up in the text itself: the text is the same without them.
--identity compares the texts of that many prompts, each alone without guesses and shared pages,
with those made in other ways (see WAYS), and measures nothing else.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import llm
from llm.generate.engine import Engine, Options
from llm.generate.requests import Request

PROMPTS = (
    "Once upon a time, there was a little girl who",
    "The capital of France is",
    "def fibonacci(n):",
    "In physics, the second law of thermodynamics states that",
    "Dear Sir or Madam, I am writing to you because",
    "The best way to learn a new language is",
    "Water boils at a temperature of",
    "My favourite recipe for bread begins with",
)
LENGTH = 1024  # tokens of the long prompt

TRANSFORMERS = """
import json, sys, time, torch, transformers
folder, dtype, ids, long, tokens, runs = *sys.argv[1:3], *map(json.loads, sys.argv[3:])
kind = getattr(torch, dtype)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
def generate(prompt):
    return model.generate(torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens,
                          do_sample=False, attention_mask=torch.ones(1, len(prompt)))
out = {"one stream": [], "prompt": [], "texts": []}
with torch.no_grad():
    generate(ids[0]); model(torch.tensor([long]), logits_to_keep=1)
    for run in range(runs):
        started = time.perf_counter(); made = generate(ids[run % len(ids)])
        out["one stream"].append(tokens / (time.perf_counter() - started))
        out["texts"].append(made[0, len(ids[run % len(ids)]):].tolist())
        started = time.perf_counter(); model(torch.tensor([long]), logits_to_keep=1)
        out["prompt"].append(len(long) / (time.perf_counter() - started))
print(json.dumps(out))
"""

LLAMA = """
import json, sys, time, llama_cpp as lib, numpy as np
path, ids, long, tokens, runs = sys.argv[1], *map(json.loads, sys.argv[2:])
settings = lib.llama_context_default_params()
settings.n_ctx, settings.n_batch, settings.n_seq_max = 16 * 1280, 2048, 16
settings.n_threads = settings.n_threads_batch = 2
silent = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(silent, None)
lib.llama_backend_init()
model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
context = lib.llama_init_from_model(model, settings)
size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
batch = lib.llama_batch_init(2048, 0, 1)
def step(entries):  # (token, position, sequence, whether its logits are wanted)
    batch.n_tokens = len(entries)
    for i, (token, position, sequence, wanted) in enumerate(entries):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    assert lib.llama_decode(context, batch) == 0
    wanted = [i for i, entry in enumerate(entries) if entry[3]]
    rows = (lib.llama_get_logits_ith(context, i) for i in wanted)
    return [int(np.ctypeslib.as_array(row, shape=(size,)).argmax()) for row in rows]
def generate(prompts):
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    ends = [(s, i, t, len(p)) for s, p in enumerate(prompts) for i, t in enumerate(p)]
    last = step([(token, i, s, i == length - 1) for s, i, token, length in ends])
    for made in range(tokens - 1):
        last = step([(t, len(p) + made, s, True) for s, (t, p) in enumerate(zip(last, prompts))])
def timed(count, run):
    started = time.perf_counter(); run()
    return count / (time.perf_counter() - started)
def several(run, count):
    return [ids[(run + row) % len(ids)] for row in range(count)]
def read():
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    step([(t, i, 0, i == len(long) - 1) for i, t in enumerate(long)])
out = {"one stream": [], "16 streams": [], "prompt": []}
generate(ids[:1]), generate(several(0, 16)), read()
for run in range(runs):
    out["one stream"].append(timed(tokens, lambda: generate(several(run, 1))))
    out["16 streams"].append(timed(16 * tokens, lambda: generate(several(run, 16))))
    out["prompt"].append(timed(len(long), read))
print(json.dumps(out))
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure decoding.")
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of ours and of transformers")
    parser.add_argument("--transformers", default="", help="a Python that has transformers")
    parser.add_argument("--llama", default="", help="a Python that has llama_cpp")
    parser.add_argument("--identity", type=int, default=0, help="prompts to compare, instead")
    parser.add_argument("--gguf", default="", help="file for llama.cpp; MODEL if that is one")
    return parser.parse_args(argv)


def timed(run: Callable[[int], int], runs: int) -> list[float]:
    """Return tokens per second of each run; `run(i)` returns how many it made, run -1 warms up."""
    run(-1)
    rates = []
    for i in range(runs):
        started = time.perf_counter()
        made = run(i)
        rates.append(made / (time.perf_counter() - started))
    return rates


def show(what: str, rates: list[float], unit: str = "tokens/s") -> float:
    """Print the median and the spread."""
    middle = statistics.median(rates)
    print(f"{what:44} {middle:8.1f} {unit}   ({min(rates):.1f} to {max(rates):.1f})", flush=True)
    return middle


def streams(engine: Engine, ids: list[tuple[int, ...]], count: int, tokens: int, guess: bool):
    """Return a run of `count` texts at once; their prompts differ from run to run."""

    def run(i: int) -> int:
        chosen = [ids[(i + row) % len(ids)] for row in range(count)]
        requests = [Request(prompt, tokens, guess=guess) for prompt in chosen]
        return sum(len(done.tokens) for done in engine.complete(requests))

    return run


def ours(lm: Any, ids: list[tuple[int, ...]], long: list[int], options: Any) -> dict[str, float]:
    """Measure this project's engine."""
    engine = lm.engine(Options(share=False))
    found = {}
    for name, count, guess in (
        ("one stream", 1, False),
        ("one stream with guesses", 1, True),
        ("8 streams", 8, False),
        ("16 streams", 16, False),
    ):
        rates = timed(streams(engine, ids, count, options.tokens, guess), options.runs)
        found[name] = show(f"jax-llm: {name}", rates)

    def read(i: int) -> int:
        engine.complete([Request(tuple(long), 1)])
        return len(long)

    found["prompt"] = show(f"jax-llm: prompt of {len(long)}", timed(read, options.runs))
    print(f"8 streams / one stream: {found['8 streams'] / found['one stream']:.2f}")
    return found


# name -> (texts at a time, options): what may not change a text
WAYS = {
    "alone, guesses and shared pages": (1, Options()),
    "16 at a time, neither": (16, Options(guess=False, share=False)),
    "16 at a time, guesses": (16, Options(share=False)),
    "16 at a time, shared pages": (16, Options(guess=False)),
    "16 at a time, both": (16, Options()),
}


def identity(lm: Any, count: int, tokens: int) -> None:
    """Print how many texts change in company, and by how much their log-probabilities differ."""
    long = " ".join(PROMPTS * 4)  # shared by every second prompt: read in several pieces
    texts = [f"{long if i % 2 else ''}{PROMPTS[i % 8]} {i}" for i in range(count)]
    requests = [Request(tuple(lm.encode_prompt(text)), tokens) for text in texts]
    plain = lm.engine(Options(guess=False, share=False))
    alone = [plain.complete([request])[0] for request in requests]
    longest = max(len(request.tokens) for request in requests)
    print(f"{count} prompts of up to {longest} tokens, {tokens} tokens each, beside each alone")
    for name, (at_once, options) in WAYS.items():
        engine = lm.engine(options)
        made: list[Any] = []
        for start in range(0, count, at_once):
            made += engine.complete(requests[start : start + at_once])
        _differences(name, alone, made)


def _differences(name: str, wanted: list[Any], got: list[Any]) -> None:
    """Print the texts that differ, with the gap where they part, and the largest other gap."""
    flips, gaps = 0, [0.0]
    for one, other in zip(wanted, got, strict=True):
        pairs = list(zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False))
        first = next((i for i, (a, b, _, _) in enumerate(pairs) if a != b), None)
        if first is not None:
            flips += 1
            print(f"  parts at token {first}: gap {abs(pairs[first][2] - pairs[first][3])}")
        gaps += [abs(p - q) for _, _, p, q in pairs[:first]]
    print(f"{name}: {flips} texts differ; log-probabilities by at most {max(gaps)}", flush=True)


def peer(python: str, program: str, arguments: list[Any]) -> dict[str, Any]:
    """Run a measuring program with another interpreter."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in arguments]
    done = subprocess.run(
        [python, "-c", program, *texts], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, mine: dict[str, float], theirs: dict[str, Any]) -> None:
    """Print a peer's figures and how ours stand to them."""
    for what in ("one stream", "16 streams", "prompt"):
        if what not in theirs:
            continue
        rate = show(f"{name}: {what}", theirs[what])
        print(f"    jax-llm / {name}: {mine[what] / rate:.2f}")
        if what == "one stream":
            print(f"    with guesses: {mine['one stream with guesses'] / rate:.2f}")


def main(argv: list[str]) -> None:
    """Measure and compare."""
    options = parse(argv)
    lm = llm.load(options.model, dtype=options.dtype)
    if options.identity:
        identity(lm, options.identity, options.tokens)
        return
    ids = [tuple(lm.encode_prompt(text)) for text in PROMPTS]
    rng = np.random.default_rng(0)
    long = rng.integers(100, lm.config.vocab_size, LENGTH).tolist()
    mine = ours(lm, ids, long, options)
    rest = [ids, long, options.tokens, options.runs]
    if options.transformers:
        with tempfile.TemporaryDirectory() as folder:
            lm.save(Path(folder) / "model", format="hf")
            given = [f"{folder}/model", options.dtype, *rest]
            theirs = peer(options.transformers, TRANSFORMERS, given)
        compare("transformers", mine, theirs)
        same = [
            done.tokens == text
            for done, text in zip(
                lm.engine().complete([Request(i, options.tokens) for i in ids[: options.runs]]),
                theirs["texts"],
                strict=False,
            )
        ]
        print(f"texts equal to transformers': {sum(same)} of {len(same)}")
    if options.llama:
        file = options.gguf or options.model
        compare("llama.cpp", mine, peer(options.llama, LLAMA, [file, *rest]))


if __name__ == "__main__":
    main(sys.argv[1:])
