# SPDX-License-Identifier: Apache-2.0
"""Distil with the symmetric divergence of GKD, and learn the answers themselves a little.

    python scripts/posttrain.py --config=configs/posttrain/gkd.py --workdir=runs/gkd \\
        --config.init.from=runs/pretrain --config.data.path=runs/corpus \\
        --config.objective.teacher=runs/dpo

See distill.py, whose data and optimizer these are. The texts here are fixed ones (GKD's λ = 0);
gkd_puzzle.py learns from the student's own.

Hardware: any CPU with two cores, the cost of distill.py. On held-out answers the divergence falls
from 0.29 to 0.02 nats a token.
"""

from configs.posttrain import distill


def get_config():
    config = distill.get_config()
    config.objective.update(name="gkd", beta=0.5, sft_weight=0.1)
    return config
