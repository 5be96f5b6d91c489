# SPDX-License-Identifier: Apache-2.0
"""Pre-train GPT-2 small (124M parameters).

    python scripts/pretrain.py --config=configs/pretrain/gpt2_124m.py --workdir=runs/gpt2 \\
        --config.data.path=runs/corpus --config.tokenizer.path=path/to/gpt2

Hardware: 8 accelerators of 40 GB for some days, or one for some weeks. On OpenWebText the published
validation loss of this shape after 300 billion tokens is about 2.85 (nanoGPT).
"""

from configs import common


def get_config():
    model = common.model("gpt2_124m", dtype="bfloat16")
    config = common.training(model, steps=600_000, batch_size=480, length=1024)
    config.schedule.peak = 6e-4
    config.schedule.warmup_steps = 2000
    config.objective.chunk = 256
    config.train.microbatches = 4
    config.train.eval_every = 1000
    config.checkpoint.every = 1000
    return config
