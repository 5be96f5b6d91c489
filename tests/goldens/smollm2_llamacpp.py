# SPDX-License-Identifier: Apache-2.0
"""Open GGUF files exported by this project with llama.cpp, and say how far it agrees.

python tests/goldens/smollm2_llamacpp.py F32.gguf Q8_0.gguf [TEXT.txt …]   (llama-cpp-python 0.3.36;
about five minutes on one core; the files are lm.save(…, format="gguf", kind=…) of
SmolLM2-135M-Instruct)

Prints how many of the 50 greedy texts of smollm2.json the F32 file repeats. Then, per set of
texts, on how many tokens the likeliest successor is that of the F32 file: with our Q8_0 file, and
with what llama.cpp itself makes of the F32 file. llama.cpp runs both, and rounds activations to
8 bits wherever weights have 8. Sets: the 50 prompts with their greedy answers, these answers
alone, Python's help topics, source text of the standard library, and the files named.
"""

import inspect
import json
import math
import sys
import tempfile
from pathlib import Path
from pydoc_data import topics

import llama_cpp
import numpy as np

GOLDEN = json.loads(Path(__file__).with_name("smollm2.json").read_text())
STOP = 2
LENGTH = 512
TOKENS = 8 * LENGTH  # per set

Sets = dict[str, list[tuple[list[int], int]]]  # windows of tokens, and the first place that counts


def open_model(path: str) -> llama_cpp.Llama:
    """Open a model with keys and values in 32 bits; llama.cpp would round them to 16."""
    wide = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        path,
        n_ctx=LENGTH,
        n_batch=LENGTH,
        logits_all=True,
        type_k=wide,
        type_v=wide,
        flash_attn=False,
        verbose=False,
    )


def quantized(full: str, place: str) -> str:
    """Let llama.cpp write every matrix of a file as Q8_0."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    options.nthread = 1
    if llama_cpp.llama_model_quantize(full.encode(), place.encode(), options):
        raise SystemExit(f"llama.cpp cannot quantise {full}")
    return place


def greedy(model: llama_cpp.Llama, ids: list[int], count: int) -> list[int]:
    """Generate the most likely tokens; the stop token is the last one."""
    model.reset()
    model.eval(ids)
    made: list[int] = []
    while len(made) < count:
        made.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        if made[-1] == STOP:
            break
        model.eval(made[-1:])
    return made


def repeated(model: llama_cpp.Llama) -> int:
    """Count the greedy texts that are the golden ones, naming the others."""
    same = 0
    for number, case in enumerate(GOLDEN["prompts"]):
        made = greedy(model, case["ids"], 64)
        same += made == case["greedy"]
        if made != case["greedy"]:
            pairs = zip(made, case["greedy"], strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
            print(f"prompt {number} differs from token {place}; its smallest gap is {case['gap']}")
    return same


def windows(model: llama_cpp.Llama, paths: list[str]) -> Sets:
    """Return the sets of texts as tokens, cut into windows that the context holds."""
    help_topics = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    texts = {
        "help topics": help_topics,
        "source text": "\n".join(inspect.getsource(m) for m in (inspect, json, tempfile)),
        **{Path(path).name: Path(path).read_text(encoding="utf-8") for path in paths},
    }
    whole = [(case["ids"] + case["greedy"], len(case["ids"]) - 1) for case in GOLDEN["prompts"]]
    found = {"greedy texts": [(ids, 0) for ids, _ in whole], "their answers": whole}
    for name, text in texts.items():
        ids = model.tokenize(text[: 16 * TOKENS].encode(), add_bos=False)[:TOKENS]
        found[name] = [(ids[start : start + LENGTH], 0) for start in range(0, len(ids), LENGTH)]
    return found


def best_tokens(path: str, sets: Sets) -> dict[str, np.ndarray]:
    """Return the most likely next token at every place of every set that counts."""
    model = open_model(path)

    def best(ids: list[int], first: int) -> np.ndarray:
        model.reset()
        model.eval(ids)
        return model.scores[first : len(ids)].argmax(-1)

    return {name: np.concatenate([best(*part) for part in parts]) for name, parts in sets.items()}


def main(full: str, small: str, *texts: str) -> None:
    model = open_model(full)
    print(f"greedy texts that are the same: {repeated(model)} of {len(GOLDEN['prompts'])}")
    sets = windows(model, list(texts))
    del model
    wanted = best_tokens(full, sets)
    with tempfile.TemporaryDirectory() as folder:
        theirs = best_tokens(quantized(full, f"{folder}/theirs.gguf"), sets)
    ours = best_tokens(small, sets)
    heads = ("tokens", "our Q8_0", "llama.cpp", "± 1 s.e.")
    print(f"{'agreement with F32, %':24}" + "".join(f"{head:>11}" for head in heads))
    for name in [*sets, "all"]:
        pick = [key for key in sets if key != "their answers"] if name == "all" else [name]
        right = np.concatenate([wanted[key] for key in pick])
        shares = [
            100 * np.mean(np.concatenate([found[key] for key in pick]) == right)
            for found in (ours, theirs)
        ]
        error = math.sqrt(shares[0] * (100 - shares[0]) / len(right))
        print(f"{name:24}{len(right):11}{shares[0]:11.2f}{shares[1]:11.2f}{error:11.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
