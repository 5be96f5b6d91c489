# SPDX-License-Identifier: Apache-2.0
"""Learn by GRPO to answer in one short sentence: a rule that a regular expression checks.

    python scripts/posttrain.py --config=configs/posttrain/grpo.py --workdir=runs/grpo \\
        --config.init.from=runs/dpo --config.data.path=runs/corpus

The model answers questions about functions itself; an answer earns 1 if it is a sentence of 15 to
50 characters, else 0. `rollouts.jsonl` shows answers as they change. Other rewards are a line each
in config.rollout.rewards (llm/posttrain/rewards.py), or a Python function of your own.

Hardware: any CPU with two cores, about a minute on the quickstart's model. Held-out reward rises
from 0.11 to 0.4 or 0.6; answers become sentences, and no truer than before: that was not rewarded.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.on_policy(steps=30, batch_size=64, length=96)
    config.data = ConfigDict({"source": "function_tasks", "length": 96, "path": "", "limit": 2000})
    config.objective = ConfigDict({"name": "grpo", "loss": "dapo", "clip_high": 0.28, "chunk": 0})
    config.rollout.max_tokens = 24
    config.rollout.rewards = ConfigDict({"pattern": {"weight": 1.0, "regex": r"[A-Z].{13,48}\."}})
    config.rollout.kl = ConfigDict({"place": "loss", "estimator": "k3", "coef": 0.2, "target": 0.0})
    config.schedule.peak = 3e-4
    config.train.log_every = 10
    config.train.eval_every = 30
    config.evals.validation.batches = 1
    common.ask(config, *common.QUESTIONS)
    return config
