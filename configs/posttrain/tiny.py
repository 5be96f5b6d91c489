# SPDX-License-Identifier: Apache-2.0
"""Fine-tune on questions about documented functions: "What does `f(x)` do?" -> its summary.

    python scripts/posttrain.py --config=configs/posttrain/tiny.py --workdir=runs/sft \\
        --config.init.from=runs/tiny --config.data.path=runs/corpus

Hardware: any CPU with two cores, about 20 seconds on the tiny model. The held-out loss of the
answers falls well below that of the pre-trained model at step 1.
"""

from configs import common


def get_config():
    config = common.follow_up(steps=100, batch_size=16, length=128)
    config.data.source = "function_questions"
    config.objective.name = "sft"
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 1e-3
    config.schedule.warmup_steps = 10
    config.train.log_every = 20
    config.train.eval_every = 50
    config.checkpoint.every = 100
    config.sampling.chat = True
    return config
