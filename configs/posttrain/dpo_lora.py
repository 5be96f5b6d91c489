# SPDX-License-Identifier: Apache-2.0
"""Prefer a function's own summary to another's (DPO) with low-rank updates, the base frozen.

    python scripts/posttrain.py --config=configs/posttrain/dpo_lora.py --workdir=runs/dpo_lora \\
        --config.init.from=runs/sft_lora --config.data.path=runs/corpus

The adapters of the run started from are merged into its weights, and new ones begin: the reference
is the model without them (objective.reference='base'), so no second copy is kept. To go on with the
old adapters instead:
    --config.model.adapter.name=inherit --config.objective.reference=start

Hardware: any CPU with two cores, about a minute on the quickstart's model.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=220, batch_size=16, length=96)
    config.model.adapter = common.adapter("lora", rank=8, alpha=16.0)
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
            "reference": "base",
        }
    )
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 3e-3
    config.schedule.end_fraction = 0.0
    config.schedule.warmup_steps = 20
    config.train.log_every = 20
    config.train.eval_every = 100
    config.evals.validation.batches = 0
    config.checkpoint.every = 220
    common.ask(config, *common.QUESTIONS)
    return config
