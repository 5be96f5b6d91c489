# SPDX-License-Identifier: Apache-2.0
"""Pre-train a SmolLM2-135M in shape, or go on from its published weights.

    python scripts/pretrain.py --config=configs/pretrain/smollm2_135m.py --workdir=runs/smollm2 \\
        --config.data.path=runs/corpus --config.tokenizer.path=path/to/SmolLM2-135M

Hardware: one accelerator of 40 GB or more; add --config.init.from=path/to/SmolLM2-135M to continue.
Cost: about 9e20 FLOPs per trillion tokens.
"""

from configs import common


def get_config():
    model = common.model("smollm2_135m", dtype="bfloat16", remat="dots")
    config = common.training(model, steps=200_000, batch_size=512, length=2048)
    config.schedule = {
        "name": "wsd",
        "peak": 3e-3,
        "warmup_steps": 2000,
        "decay_fraction": 0.2,
        "end_fraction": 0.0,
    }
    config.objective.chunk = 512
    config.train.microbatches = 16
    config.train.eval_every = 1000
    config.checkpoint.every = 1000
    return config
