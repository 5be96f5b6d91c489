# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level T5 on installed documentation: restore hidden spans.

    python scripts/pretrain.py --config=configs/pretrain/tiny_t5.py --workdir=runs/t5

Hardware: any CPU with two cores, about a minute. Expect 2.7 nats per token of the held-out targets
(spans and their sentinels), whose unigram entropy is 3.5.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    model = common.model(
        "t5_v1_1_small",
        vocab_size=0,
        n_layers=2,
        d_model=64,
        n_heads=4,
        head_dim=16,
        d_ff=128,
        max_length=256,
    )
    config = common.training(model, steps=600, batch_size=16, length=128)
    config.data.corruption = ConfigDict({"name": "span_corruption", "rate": 0.15, "mean_span": 3.0})
    config.objective.name = "span_corruption"
    config.schedule.peak = 2e-3
    config.schedule.warmup_steps = 50
    config.train.eval_every = 200
    config.checkpoint.every = 200
    config.evals.validation.batches = 4
    return config
