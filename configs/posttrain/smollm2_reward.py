# SPDX-License-Identifier: Apache-2.0
"""Train a reward model on real preferences (Anthropic's HH dialogues), from a real model.

    python scripts/posttrain.py --config=configs/posttrain/smollm2_reward.py \\
        --config.init.from=SmolLM2-135M-Instruct.Q4_1.gguf \\
        --config.data.path=hh_harmless.jsonl.gz \\
        --workdir=runs/smollm2/reward

Low-rank updates and the score head; a fifth of the prompts is held out. benchmarks/preferences.py
compares it with a bag of words and gives intervals. Hardware: two CPU cores, about 20 minutes by
the first steps on free ones; one epoch, held-out accuracy 0.64 beside 0.63 (docs/posttraining.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=129, batch_size=8, length=256)
    config.model.head = "sequence"
    config.model.n_classes = 1
    config.model.adapter = common.adapter("lora", rank=16, alpha=32.0)
    config.data = ConfigDict(
        {"source": "preferences", "path": "", "length": 256, "validation": 0.2, "format": "hh"}
    )
    config.objective = ConfigDict({"name": "reward", "centre": 0.01, "margin": 1.0})
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 5e-4
    config.schedule.warmup_steps = 6
    config.train.log_every = 5
    config.train.eval_every = 129
    config.train.eval_first = False
    config.evals.validation.batches = 0
    config.checkpoint.every = 65
    return config
