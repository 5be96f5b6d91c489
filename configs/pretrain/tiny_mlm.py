# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level BERT on installed documentation: fill in masked letters.

    python scripts/pretrain.py --config=configs/pretrain/tiny_mlm.py --workdir=runs/mlm

Hardware: any CPU with two cores, about a minute. Expect 2.2 nats per hidden byte on held-out text,
whose unigram entropy is 3.3.
Positions are rotary: a run this short does not learn BERT's table of absolute ones.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    model = common.model(
        "bert_tiny",
        vocab_size=0,
        d_model=64,
        n_heads=4,
        max_length=256,
        position="rope",
        pooler=False,
    )
    config = common.training(model, steps=600, batch_size=16, length=128)
    config.data.corruption = ConfigDict({"name": "mlm", "rate": 0.15, "whole_words": False})
    config.objective.name = "mlm"
    config.schedule.peak = 3e-3
    config.schedule.warmup_steps = 50
    config.train.eval_every = 200
    config.checkpoint.every = 200
    config.evals.validation.batches = 4
    return config
