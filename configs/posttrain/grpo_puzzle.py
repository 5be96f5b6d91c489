# SPDX-License-Identifier: Apache-2.0
"""Learn from a verifier alone (GRPO): the largest of four digits.

    python scripts/posttrain.py --config=configs/posttrain/grpo_puzzle.py \\
        --workdir=runs/puzzle/grpo --config.init.from=runs/puzzle/sft

Hardware: any CPU with two cores, about a minute; held-out exact answers 0.29–0.43 to 0.73–0.91.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.on_policy(steps=120, batch_size=128, length=32)
    config.data = ConfigDict(
        {"source": "puzzles", "length": 32, "kind": "largest", "size": 4, "count": 4000}
    )
    config.objective = ConfigDict({"name": "grpo", "loss": "dapo", "clip_high": 0.28, "chunk": 0})
    config.rollout.max_tokens = 8
    config.rollout.rewards = ConfigDict({"exact": {"weight": 1.0}})
    config.schedule.peak = 5e-4
    common.ask(config, "max 3141", "max 2718")
    return config
