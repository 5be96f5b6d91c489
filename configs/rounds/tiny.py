# SPDX-License-Identifier: Apache-2.0
"""Rounds of answers, judgements, reward model and PPO: the largest of four digits.

    python scripts/rounds.py --config=configs/rounds/tiny.py --config.start=runs/puzzle/sft \\
        --workdir=runs/puzzle/rounds

The start comes from configs/posttrain/puzzle_sft.py. A verifier stands for people: it says which
answers are right, and only the reward model sees its judgements. With --config.labels=people the
run stops after collecting and says how to label; start it again then, and after a kill.

Hardware: any CPU with two cores, about a minute a round. Expect 890 pairs after three rounds, and
right answers to rise from 0.43 to 0.87, 0.95 and 0.97; rounds.json has every round's figures.
"""

from ml_collections import ConfigDict

from configs.feedback import tiny as feedback
from configs.posttrain import ppo_reward_puzzle, puzzle_reward


def get_config():
    config = ConfigDict()
    config.start = "runs/puzzle/sft"
    config.rounds = 3
    config.prompts = 600  # of config.policy.data, asked in a round
    config.labels = "scorer"  # or "people"
    # A policy starts from, and is kept near, the "last" one or the "start"
    config.origin = "last"
    config.least_accuracy = 0.7  # of a reward model on held-out pairs; below it the run stops
    config.seed = 0

    config.collect = feedback.get_config()
    config.collect.chunk = 200
    config.collect.maker.n = 8
    config.collect.sampling = ConfigDict({"max_tokens": 8, "temperature": 1.0})
    config.collect.maker.scorer = ConfigDict(
        {"name": "verifier", "rewards": {"exact": {"weight": 1.0}}}
    )

    config.reward = puzzle_reward.get_config()
    config.reward.data = ConfigDict(
        {"source": "preferences", "path": "", "length": 32, "validation": 0.2}
    )
    config.reward.train.eval_every = 400
    config.reward.train.eval_first = False

    config.policy = ppo_reward_puzzle.get_config()
    config.policy.rollout.rewards.model.path = ""
    config.policy.train.steps = 240
    config.policy.train.eval_every = 240
    config.policy.checkpoint.every = 240
    return config
