# SPDX-License-Identifier: Apache-2.0
"""LoRA-tune a real model on questions and answers, step for step beside TRL and PEFT.

    python benchmarks/lora_sft.py --model=SmolLM2-135M-Instruct.Q4_1.gguf \\
        --data=gsm8k_train.jsonl --peer-python=PYTHON_WITH_TORCH_TRL_PEFT

Both sides read the same tokens (ours), in the same order, unpacked and padded to one length, from
the same weights and the same first adapters; AdamW, constant rate, clip 1.0, float32, two threads.
Prints one JSON line: the loss of the held-out answers before and after on both sides, the largest
relative difference of the training losses, tokens/s of the steps after the second (real tokens; our
compilation and both loads are left out) and their ratio.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import llm
from llm.core import trees
from llm.data import examples
from llm.models import tuning
from llm.models.adapters import Adapter, trainable
from llm.models.config import with_adapter
from llm.models.transformer import Transformer
from llm.posttrain import formats
from llm.train.objective import cross_entropy
from llm.train.settings import make_optimizer
from llm.train.step import Frozen, init_state, make_step

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = Adapter("lora", rank=16, alpha=32.0)
RATE = 1e-3


def rows(path: str, tokenizer: Any, length: int, count: int) -> dict[str, np.ndarray]:
    """Return the first chats that fit, one per row."""
    found: list[dict[str, np.ndarray]] = []
    for record in formats.convert(examples.read_records(path)):
        one = examples.answer_example(record["messages"][:-1], record["messages"], tokenizer)
        size = len(one["tokens"])
        if size > length:
            continue
        row = {k: np.pad(v, (0, length - size)) for k, v in one.items()}
        row["segments"] = (np.arange(length) < size).astype(np.int32)
        row["positions"] = np.arange(length, dtype=np.int32)
        found.append(row)
        if len(found) == count:
            break
    return {k: np.stack([row[k] for row in found]) for k in found[0]}


def ours(lm: Any, folder: Path, train: Any, held: Any, batch: int) -> dict[str, Any]:
    """Train, and leave the first adapters in `folder/peft` for the peer."""
    config = with_adapter(lm.config, ADAPTER)
    model = Transformer(config)
    one = np.zeros((1, 8), np.int32)
    params = tuning.begin(model, lm.params, one, jax.random.key(0))
    llm_with = type(lm)(config, model, params, lm.tokenizer)
    llm_with.save(folder / "peft", format="peft")
    inside, outside = trees.split(params, trainable(ADAPTER))
    axes = {
        name: ("layers", *(None,) * (leaf.ndim - 1)) for name, leaf in trees.flatten(inside).items()
    }
    steps = len(train["tokens"]) // batch
    optimizer = make_optimizer(
        steps, axes, {"name": "constant", "peak": RATE}, name="adamw", b2=0.999, weight_decay=0.0
    )
    objective = cross_entropy(model)
    state, frozen = init_state(inside, optimizer, False), Frozen(outside, ())
    step = jax.jit(make_step(objective, optimizer))
    measure = jax.jit(lambda p, b: objective.loss(p, (), b, None)["nll"])

    def held_out(inside: Any) -> float:
        full = trees.merge(inside, outside)
        sums = [measure(full, part(held, i, batch)) for i in range(len(held["tokens"]) // batch)]
        return float(sum(s for s, _ in sums) / sum(w for _, w in sums))

    before, losses, seconds = held_out(state.params), [], []
    for number in range(steps):
        start = time.perf_counter()
        state, metrics = step(state, frozen, part(train, number, batch), jax.random.key(0))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    after = held_out(state.params)
    return {"before": before, "after": after, "losses": losses, "seconds": seconds}


def part(data: dict[str, np.ndarray], number: int, batch: int) -> dict[str, np.ndarray]:
    """Return a batch."""
    return {k: v[number * batch : (number + 1) * batch] for k, v in data.items()}


def main() -> None:
    """Run both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=64)
    args = parser.parse_args()
    lm = llm.load(args.model)
    count = args.batch * args.steps
    data = rows(args.data, lm.tokenizer, args.length, count + args.held_out)
    train, held = ({k: v[s] for k, v in data.items()} for s in (slice(count), slice(count, None)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm.save(folder / "base", format="hf")
        np.savez(folder / "rows.npz", **data)
        mine = ours(lm, folder, train, held, args.batch)
        command = [args.peer_python, str(ROOT / "benchmarks/peers/lora_sft.py"), name]
        command += [str(args.batch), str(args.steps), str(RATE)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs = json.loads(made.stdout.splitlines()[-1])
    real = train["segments"].reshape(args.steps, -1).sum(1)
    speed = {
        side: statistics.median((real / np.array(x["seconds"]))[2:])
        for side, x in (("ours", mine), ("peer", theirs))
    }
    apart = np.abs(np.array(mine["losses"]) / np.array(theirs["losses"]) - 1)
    print(
        json.dumps(
            {
                "rows": count,
                "held_out_rows": args.held_out,
                "ours": {k: round(mine[k], 4) for k in ("before", "after")},
                "peer": {k: round(theirs[k], 4) for k in ("before", "after")},
                "largest_relative_difference": float(apart.max()),
                "tokens_per_s": {k: round(v, 1) for k, v in speed.items()},
                "ratio": round(speed["ours"] / speed["peer"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
