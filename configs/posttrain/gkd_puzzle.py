# SPDX-License-Identifier: Apache-2.0
"""Distil on policy (GKD): the student answers, and learns what the teacher would have said there.

    python scripts/posttrain.py --config=configs/posttrain/gkd_puzzle.py \\
        --workdir=runs/puzzle/gkd --config.init.from=runs/puzzle/sft \\
        --config.objective.teacher=runs/puzzle/grpo

Student and teacher come from configs/posttrain/{puzzle_sft,grpo_puzzle}.py. answers.share is GKD's
λ: the share of batches whose answers are the student's own; the others hold the data's.

Hardware: any CPU with two cores, half a minute; on answers of its own to held-out questions the
divergence from the teacher falls from 0.075 to 0.0001 nats a token.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=120, batch_size=64, length=32)
    config.data = ConfigDict(
        {"source": "puzzles", "length": 32, "kind": "largest", "size": 4, "count": 4000}
    )
    # As in configs/posttrain/gkd.py; a teacher's stored tokens cannot know what is drawn here
    config.objective = ConfigDict(
        {
            "name": "gkd",
            "teacher": "runs/puzzle/grpo",
            "beta": 0.5,
            "temperature": 1.0,
            "sft_weight": 0.0,
            "teacher_dtype": "float32",
            "chunk": 0,
        }
    )
    config.answers = ConfigDict(
        {
            "share": 1.0,
            "max_tokens": 8,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "rows": 64,
        }
    )
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 1e-3
    config.schedule.warmup_steps = 10
    config.train.log_every = 20
    config.train.eval_every = 60
    config.evals.validation.batches = 0
    config.checkpoint.every = 120
    return config
