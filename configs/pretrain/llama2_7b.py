# SPDX-License-Identifier: Apache-2.0
"""Pre-train Llama-2-7B in shape on your documents.

    python scripts/pretrain.py --config=configs/pretrain/llama2_7b.py --workdir=gs://bucket/run \\
        --config.data.path=gs://bucket/corpus --config.tokenizer.path=gs://bucket/tokenizer

Hardware: from 16 TPU v5p chips (v5p-32); check other sizes first:
    python scripts/plan.py --config=configs/pretrain/llama2_7b.py --topology=v5p:2x2x4 --compile
Cost: about 4e22 FLOPs per trillion tokens. Llama 2's report gives a training loss near 1.75 after
two trillion tokens of its own mixture (figure 5); other data give other numbers.
"""

from configs import common


def get_config():
    model = common.model("llama2_7b", dtype="bfloat16", remat="full")
    config = common.training(model, steps=500_000, batch_size=1024, length=4096)
    config.objective.z_loss = 1e-4
    config.objective.chunk = 512
    config.schedule.peak = 3e-4
    config.schedule.warmup_steps = 2000
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.train.microbatches = 16
    config.checkpoint.every = 1000
    config.train.eval_every = 1000
    config.platform = "tpu"
    return config
