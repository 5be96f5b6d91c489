# SPDX-License-Identifier: Apache-2.0
"""Train a reward model for puzzles: right answers above wrong ones.

    python scripts/posttrain.py --config=configs/posttrain/puzzle_reward.py \\
        --workdir=runs/puzzle/reward --config.init.from=runs/puzzle/sft

What configs/posttrain/ppo_reward_puzzle.py optimises against. A third of the wrong answers have
characters too many: a model that had only seen digits would call "97" as right as "9".

Hardware: any CPU with two cores, about a minute; held-out accuracy from 0.2–0.3 to 1.0.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=800, batch_size=48, length=32)
    config.model.head = "sequence"
    config.model.n_classes = 1
    config.data = ConfigDict(
        {"source": "puzzle_preferences", "length": 32, "kind": "largest", "size": 4, "seed": 1}
    )
    config.objective = ConfigDict({"name": "reward", "centre": 0.01, "margin": 1.0})
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 3e-3
    config.schedule.warmup_steps = 20
    config.train.log_every = 50
    config.train.eval_every = 200
    config.evals.validation.batches = 0
    config.checkpoint.every = 800
    return config
