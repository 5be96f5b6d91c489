# SPDX-License-Identifier: Apache-2.0
"""Ask what a model should decline, and harmless twins of that: refusal and over-refusal rates.

    python scripts/eval.py --config=configs/eval/refusals.py --config.model=runs/sft \\
        --workdir=runs/eval_refusals

Add {"kind": "win_rate", "others": (…), "path": …} to compare models by a judge or known answers.

Hardware: any; the cost is that of 96 short answers. Expect a refusal rate near 0 of a model that
was never tuned to decline.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/sft"
    config.dtype = "float32"
    config.tasks = ConfigDict(
        {"refusals": {"kind": "refusals", "path": "", "max_tokens": 48, "batch_size": 64}}
    )
    config.report = ConfigDict({"console": True, "max_items": 200})
    return config
