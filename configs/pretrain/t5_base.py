# SPDX-License-Identifier: Apache-2.0
"""Pre-train an encoder-decoder in T5-base's shape by span corruption.

    python scripts/pretrain.py --config=configs/pretrain/t5_base.py --workdir=runs/t5 \\
        --config.data.path=runs/corpus --config.tokenizer.path=path/to/tokenizer

Hardware: 8 accelerators of 16 GB or more. Rows of 568 tokens become 512 encoder and 114 decoder
tokens: 15 % hidden, in spans of 3 on average, with Adafactor and 1/sqrt(step), as in the paper.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    model = common.model("t5_base", dtype="bfloat16", dropout=0.0, max_length=568, remat="full")
    config = common.training(model, steps=524_288, batch_size=128, length=568)
    config.data.corruption = ConfigDict({"name": "span_corruption", "rate": 0.15, "mean_span": 3.0})
    config.objective.name = "span_corruption"
    config.optimizer = ConfigDict({"name": "adafactor", "clip_norm": 0.0, "weight_decay": 0.0})
    config.schedule = ConfigDict({"name": "rsqrt", "peak": 0.01, "warmup_steps": 10_000})
    config.checkpoint.every = 5000
    config.train.eval_every = 5000
    return config
