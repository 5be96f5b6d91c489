# SPDX-License-Identifier: Apache-2.0
"""Train a reward model: a score for every answer, higher for a function's own summary.

    python scripts/posttrain.py --config=configs/posttrain/reward.py --workdir=runs/reward \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

`llm.load("runs/reward").scores([chat, …])` scores chats that end with an answer, or token ids.
Your own pairs or rankings, one {"prompt", "chosen", "rejected"} (with a "margin", if known) or
{"prompt", "ranking": [best, …, worst]} a line; Anthropic's HH dialogues are read as they are:
    --config.data.source=preferences --config.data.path=my.jsonl
    --config.objective.centre=0.01          keeps scores around zero, for PPO
    --config.train.trainable='^classifier|layers|final_norm'  leaves the embeddings as they are
    --config.model.adapter.name=lora        low-rank updates and the head

Hardware: any CPU with two cores, less work than dpo.py (no reference, no vocabulary). Held-out
accuracy starts at chance (0.5) and reaches about 0.80.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=220, batch_size=16, length=96)
    config.model.head = "sequence"
    config.model.n_classes = 1
    config.data.source = "function_preferences"
    config.objective = ConfigDict({"name": "reward", "centre": 0.01, "margin": 1.0})
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 1e-3
    config.schedule.end_fraction = 0.0
    config.schedule.warmup_steps = 20
    config.train.log_every = 20
    config.train.eval_every = 100
    config.evals.validation.batches = 0
    config.checkpoint.every = 220
    return config
