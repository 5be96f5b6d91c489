# SPDX-License-Identifier: Apache-2.0
"""Optimise a reward model by PPO, and watch what a verifier says of it: the largest of four digits.

    python scripts/posttrain.py --config=configs/posttrain/ppo_reward_puzzle.py \\
        --workdir=runs/puzzle/ppo_reward --config.init.from=runs/puzzle/sft \\
        --config.rollout.rewards.model.path=runs/puzzle/reward

The reward model comes from configs/posttrain/puzzle_reward.py. "exact" has weight 0: training does
not see it, the monitors do (rollout/gold, rollout/hack_gap, rollout/sign_gold).

Hardware: any CPU with two cores, about a minute; over nine seeds exact answers rise from 0.29–0.43
to 0.80–0.93.
"""

from ml_collections import ConfigDict

from configs.posttrain import ppo_puzzle


def get_config():
    config = ppo_puzzle.get_config()
    # Scores of -5 to 5: without the weight, the loss of the values would drown that of the policy
    config.rollout.rewards = ConfigDict(
        {"model": {"weight": 0.2, "path": "runs/puzzle/reward"}, "exact": {"weight": 0.0}}
    )
    # Whitened advantages shrink a penalty inside the reward as scores spread; in the loss the pull
    # to the reference keeps its strength. k2 has the gradient of the KL divergence; that of k3
    # grows exponentially with the ratio of a token and may throw a policy off.
    config.rollout.kl.place = "loss"
    config.rollout.kl.estimator = "k2"
    config.rollout.kl.coef = 0.3
    config.rollout.kl.target = 0.0
    config.train.steps = 480
    config.train.eval_every = 30
    config.checkpoint.every = 480
    return config
