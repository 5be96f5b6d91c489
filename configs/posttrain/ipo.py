# SPDX-License-Identifier: Apache-2.0
"""Prefer a function's own summary to another's with a bounded margin (IPO).

    python scripts/posttrain.py --config=configs/posttrain/ipo.py --workdir=runs/ipo \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

The margin of log-probabilities per token that is sought is 1 / 2β; average=False compares sums.

Hardware: any CPU with two cores, the cost of dpo.py, whose data and optimizer these are. Every pair
starts as a tie (0.5); accuracy on held-out pairs reaches about 0.77.
"""

from ml_collections import ConfigDict

from configs.posttrain import dpo


def get_config():
    config = dpo.get_config()
    config.objective = ConfigDict(
        {"name": "ipo", "beta": 0.5, "average": True, "sft_weight": 0.0, "chunk": 0}
    )
    return config
