# SPDX-License-Identifier: Apache-2.0
"""Learn answers and preferences at once, without a reference (ORPO).

    python scripts/posttrain.py --config=configs/posttrain/orpo.py --workdir=runs/orpo \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

Hardware: any CPU with two cores, less than the cost of dpo.py (no reference). From the
fine-tuned model accuracy on held-out pairs moves little, from 0.62 to 0.64: most of the loss is the
likelihood. It may start from a model that was only pre-trained: --config.init.from=runs/pretrain.
"""

from ml_collections import ConfigDict

from configs.posttrain import dpo


def get_config():
    config = dpo.get_config()
    config.objective = ConfigDict(
        {"name": "orpo", "beta": 0.5, "sft_mean": "sequences", "sft_on_prompt": False, "chunk": 0}
    )
    return config
