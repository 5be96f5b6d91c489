# SPDX-License-Identifier: Apache-2.0
"""Teach a fresh small model the form of an answer: four digits, the largest of them; 70 % wrong.

    python scripts/posttrain.py --config=configs/posttrain/puzzle_sft.py --workdir=runs/puzzle/sft

What configs/posttrain/{grpo,rloo,ppo}_puzzle.py start from: about 42 % of its answers are right,
and a verifier can tell which. Other puzzles: --config.data.kind=sorted (or reversed, sum).

Hardware: any CPU with two cores, about half a minute.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    model = common.model("tiny", vocab_size=0, max_length=64)
    config = common.training(model, steps=300, batch_size=48, length=64)
    config.data = ConfigDict(
        {"source": "puzzle_chats", "length": 64, "kind": "largest", "size": 4, "count": 4000}
    )
    config.data.wrong = 0.7
    config.objective.name = "sft"
    config.schedule.peak = 3e-3
    config.schedule.warmup_steps = 20
    config.train.eval_every = 150
    config.train.log_every = 50
    config.checkpoint.every = 300
    common.ask(config, "max 3141", "max 2718")
    return config
