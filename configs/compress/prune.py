# SPDX-License-Identifier: Apache-2.0
"""Prune a model: zeros in its matrices, fewer hidden units, fewer layers; and what each costs.

    python scripts/compress.py --config=configs/compress/prune.py --workdir=runs/pruned \\
        --config.model=runs/sft --config.measure.documents=runs/corpus \\
        --config.calibration.documents=runs/corpus

Zeros are for storage and for hardware that skips them. The kept variant has fewer hidden units: it
is smaller and faster everywhere, and distillation from the whole model heals it:

    python scripts/posttrain.py --config=configs/posttrain/distill.py --workdir=runs/healed \\
        --config.init.from=runs/pruned --config.objective.teacher=runs/sft

Hardware: any CPU with two cores, about a minute on the tiny model; docs/compress.md has figures.
"""

from ml_collections import ConfigDict

from configs.compress import gptq
from llm.compress.names import PRUNED, WHOLE


def get_config():
    config = gptq.get_config()
    chosen = {"include": PRUNED, "exclude": WHOLE}
    config.variants = ConfigDict(
        {
            "float32": {"method": "float32"},
            "magnitude": {"method": "magnitude", "sparsity": 0.5, "pattern": "", **chosen},
            "wanda": {"method": "wanda", "sparsity": 0.5, "pattern": "", **chosen},
            "wanda_2_4": {"method": "wanda", "sparsity": 0.5, "pattern": "2:4", **chosen},
            "hidden": {"method": "hidden", "d_ff": 144},  # of 192
            "layers": {"method": "layers", "layers": 3},  # of 4
        }
    )
    config.keep = "hidden"
    return config
