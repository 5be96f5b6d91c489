# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level decoder to fill in the middle of half of its documents.

    python scripts/pretrain.py --config=configs/pretrain/tiny_fim.py --workdir=runs/fim

Hardware: any CPU with two cores, about a minute. To fill in afterwards, give the model the ids of
<|fim_prefix|> before <|fim_suffix|> after <|fim_middle|>.
"""

from ml_collections import ConfigDict

from configs.pretrain import tiny


def get_config():
    config = tiny.get_config()
    config.data.corruption = ConfigDict(
        {"name": "fim", "rate": 0.5, "spm_rate": 0.5, "unit": "character"}
    )
    config.objective.name = "fim"
    return config
