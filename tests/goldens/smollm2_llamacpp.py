# SPDX-License-Identifier: Apache-2.0
"""Open GGUF files exported by this project with llama.cpp, and say how far it agrees.

python tests/goldens/smollm2_llamacpp.py F32.gguf Q8_0.gguf   (llama-cpp-python 0.3.36; two minutes
on one core; the files are lm.save(…, format="gguf", kind=…) of SmolLM2-135M-Instruct)

Prints how many of the 50 greedy texts of smollm2.json the F32 file repeats, and on how many of
2,048 tokens of Python's help topics the Q8_0 file's most likely token is that of the F32 file.
"""

import json
import sys
from pathlib import Path
from pydoc_data import topics

import llama_cpp
import numpy as np

GOLDEN = json.loads(Path(__file__).with_name("smollm2.json").read_text())
STOP = 2
LENGTH = 512


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


def best_tokens(model: llama_cpp.Llama, ids: list[int]) -> np.ndarray:
    """Return the most likely next token at every place, in windows of the context."""
    found = []
    for start in range(0, len(ids), LENGTH):
        window = ids[start : start + LENGTH]
        model.reset()
        model.eval(window)
        found.append(model.scores[: len(window)].argmax(-1))
    return np.concatenate(found)


def main(full: str, small: str) -> None:
    model = open_model(full)
    same = 0
    for number, case in enumerate(GOLDEN["prompts"]):
        made = greedy(model, case["ids"], 64)
        same += made == case["greedy"]
        if made != case["greedy"]:
            pairs = zip(made, case["greedy"], strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
            print(f"prompt {number} differs from token {place}; its smallest gap is {case['gap']}")
    print(f"greedy texts that are the same: {same} of {len(GOLDEN['prompts'])}")
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    ids = model.tokenize(text.encode(), add_bos=False)[: 4 * LENGTH]
    first = best_tokens(model, ids)
    second = best_tokens(open_model(small), ids)
    print(f"Q8_0 and F32 agree on {np.mean(first == second):.2%} of {len(ids)} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
