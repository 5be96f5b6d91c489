# SPDX-License-Identifier: Apache-2.0
"""Prefer a function's own summary to another's (DPO), starting from the fine-tuned model.

    python scripts/posttrain.py --config=configs/posttrain/dpo.py --workdir=runs/dpo \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

Hardware: any CPU with two cores, about 70 seconds on the quickstart's model. Every pair starts as a
tie; the reward accuracy on held-out pairs passes 0.8.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=200, batch_size=16, length=96)
    config.data.source = "function_preferences"
    config.objective = ConfigDict(
        {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.0, "chunk": 0}
    )
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 1e-3
    config.schedule.warmup_steps = 10
    config.train.log_every = 20
    config.train.eval_every = 100
    config.evals.validation.batches = 0
    config.checkpoint.every = 200
    config.sampling.chat = True
    return config
