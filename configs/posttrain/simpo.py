# SPDX-License-Identifier: Apache-2.0
"""Prefer by log-probabilities per token, without a reference (SimPO).

    python scripts/posttrain.py --config=configs/posttrain/simpo.py --workdir=runs/simpo \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

Hardware: any CPU with two cores, less than the cost of dpo.py (no reference); accuracy on
held-out pairs rises from 0.62 to about 0.75, while both answers become less likely.
objective.gamma is the margin that is sought; objective.sft_weight adds the likelihood of the chosen
answer (CPO-SimPO).
"""

from ml_collections import ConfigDict

from configs.posttrain import dpo


def get_config():
    config = dpo.get_config()
    config.objective = ConfigDict(
        {"name": "simpo", "beta": 2.0, "gamma": 1.0, "sft_weight": 0.0, "chunk": 0}
    )
    return config
