# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level decoder that sees the first part of each document both ways.

    python scripts/pretrain.py --config=configs/pretrain/tiny_prefix_lm.py --workdir=runs/prefix_lm

Hardware: any CPU with two cores, about a minute.
"""

from ml_collections import ConfigDict

from configs.pretrain import tiny


def get_config():
    config = tiny.get_config()
    config.data.corruption = ConfigDict({"name": "prefix_lm"})
    config.objective.name = "prefix_lm"
    return config
