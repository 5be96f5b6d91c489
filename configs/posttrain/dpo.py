# SPDX-License-Identifier: Apache-2.0
"""Prefer a function's own summary to another's (DPO), starting from the fine-tuned model.

    python scripts/posttrain.py --config=configs/posttrain/dpo.py --workdir=runs/dpo \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

Hardware: any CPU with two cores, about 80 seconds on the quickstart's model. Every pair starts as a
tie; the reward accuracy on held-out pairs reaches about 0.83.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=220, batch_size=16, length=96)
    config.data.source = "function_preferences"
    config.objective = ConfigDict(
        {
            "name": "dpo",
            "loss": "sigmoid",
            "beta": 0.1,
            "label_smoothing": 0.0,
            "average": False,
            "sft_weight": 0.0,
            "chunk": 0,
            "reference": "start",
        }
    )
    # Small steps: at three times this rate the model drifts from its reference and learns less
    config.optimizer = ConfigDict(
        {"name": "muon", "clip_norm": 1.0, "weight_decay": 0.0, "adam_scale": 0.1}
    )
    config.schedule.peak = 3e-3
    config.schedule.end_fraction = 0.0
    config.schedule.warmup_steps = 20
    config.train.log_every = 20
    config.train.eval_every = 100
    config.evals.validation.batches = 0
    config.checkpoint.every = 220
    common.ask(config, *common.QUESTIONS)
    return config
