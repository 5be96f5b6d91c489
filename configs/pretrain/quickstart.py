# SPDX-License-Identifier: Apache-2.0
"""Pre-train a small decoder on the corpus of scripts/quickstart.sh.

    python scripts/pretrain.py --config=configs/pretrain/quickstart.py --workdir=runs/pretrain \\
        --config.data.path=runs/corpus --config.tokenizer.path=runs/tokenizer/tokenizer

Hardware: any CPU with two cores, between three and four minutes. Expect about 1.7 bits per byte on
held-out documents; an interpolated Kneser-Ney 5-gram of the same tokens reaches 1.79.
"""

from configs import common


def get_config():
    config = common.training(
        common.model("1m", vocab_size=0, qk_norm="head", max_length=256, attention="dot_product"),
        steps=750,
        batch_size=8,
        length=256,
    )
    config.optimizer = {
        "name": "muon",
        "clip_norm": 1.0,
        "weight_decay": 0.01,
        "adam_scale": 0.3,
    }
    config.schedule = {
        "name": "wsd",
        "peak": 0.02,
        "warmup_steps": 20,
        "decay_fraction": 0.5,
        "end_fraction": 0.0,
    }
    config.train.log_every = 20
    config.train.eval_every = 250
    config.evals.validation.batches = 0
    config.checkpoint.every = 250
    config.sampling.every = 500
    return config
