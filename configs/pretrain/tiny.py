# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level decoder on installed documentation, to see that everything works.

    python scripts/pretrain.py --config=configs/pretrain/tiny.py --workdir=runs/tiny

Hardware: any CPU with two cores, about 20 seconds. Expect a validation loss near 2.3 nats/byte.
"""

from configs import common


def get_config():
    config = common.training(
        common.model("tiny", vocab_size=0), steps=200, batch_size=16, length=128
    )
    config.schedule.peak = 3e-3
    config.schedule.warmup_steps = 20
    config.train.log_every = 20
    config.train.eval_every = 100
    config.checkpoint.every = 100
    config.evals.validation.batches = 4
    return config
