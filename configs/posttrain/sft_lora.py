# SPDX-License-Identifier: Apache-2.0
"""Fine-tune with low-rank updates: questions about documented functions, the base frozen.

    python scripts/posttrain.py --config=configs/posttrain/sft_lora.py --workdir=runs/sft_lora \\
        --config.init.from=runs/tiny --config.data.path=runs/corpus

Other adapters are other names and numbers, here and in every config of this folder:
    --config.model.adapter.name=dora                    LoRA with magnitudes
    --config.model.adapter.rslora=true                  scale by alpha / sqrt(rank)
    --config.model.adapter.base=int4                    QLoRA: the frozen weights in four bits
    --config.model.adapter.targets='(query|value)$'     fewer maps
    --config.model.adapter.name=prefix --config.model.adapter.length=16
    --config.model.adapter.name=prompt --config.optimizer.name=adamw
    --config.model.adapter.name=none --config.train.trainable='^lm_head|final_norm'
`llm.load("runs/sft_lora")` answers with the adapter; `.merge()` gives a plain model, and
`.save("adapter", format="peft")` writes the adapter alone.

Hardware: any CPU with two cores, one to two minutes on the quickstart's model, whose held-out loss
of the answers falls from 5.7 to 3.7 nats per token at step 200.
"""

from configs import common


def get_config():
    config = common.follow_up(steps=200, batch_size=8, length=256)
    config.model.adapter = common.adapter("lora", rank=8, alpha=16.0)
    config.data.source = "function_questions"
    config.objective.name = "sft"
    config.optimizer.weight_decay = 0.0
    config.schedule.peak = 1e-2  # low-rank updates take a higher rate than whole weights
    config.schedule.warmup_steps = 10
    config.train.log_every = 20
    config.train.eval_every = 100
    config.evals.validation.batches = 0
    config.checkpoint.every = 200
    common.ask(config, *common.QUESTIONS)
    return config
