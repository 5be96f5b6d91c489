# SPDX-License-Identifier: Apache-2.0
"""Tune a low-rank adapter of a real model on questions about documented functions.

    python scripts/posttrain.py --config=configs/posttrain/smollm2_lora.py \\
        --config.init.from=SmolLM2-135M-Instruct.Q4_1.gguf --config.data.path=runs/corpus \\
        --workdir=runs/smollm2/lora

scripts/smollm2.sh fetches the model and runs this. Hardware: two CPU cores, a few minutes.
"""

from configs import common


def get_config():
    config = common.follow_up(steps=40, batch_size=4, length=128)
    config.model.adapter = common.adapter("lora", rank=16, alpha=32.0)
    config.data.source = "function_questions"
    config.objective.name = "sft"
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 1e-3
    config.schedule.warmup_steps = 4
    config.train.log_every = 5
    config.train.eval_every = 40
    config.evals.validation.batches = 8
    config.checkpoint.every = 40
    return config
