# SPDX-License-Identifier: Apache-2.0
"""Classify texts: which package does a piece of documentation come from?

    python scripts/posttrain.py --config=configs/posttrain/classify_tiny.py \\
        --workdir=runs/classify --config.init.from=runs/tiny --config.data.path=runs/corpus

`llm.load("runs/classify").classify(["def f(x)"])` gives the most likely class with its probability.
Your own data, one {"text": …, "label": …} a line, or {"tokens": […], "labels": […]}:
    --config.data.source=labels --config.data.path=my.jsonl
    --config.model.head=token           for a label per word
    --config.train.trainable='^classifier' trains the head alone
    --config.model.adapter.name=lora    trains low-rank updates and the head

Hardware: any CPU with two cores, about 20 seconds on the tiny model.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = common.follow_up(steps=150, batch_size=16, length=128)
    config.model.head = "sequence"
    config.model.n_classes = 0  # those of the data
    config.data = ConfigDict({"source": "document_labels", "path": "", "length": 128})
    config.objective = ConfigDict({"name": "classify", "label_smoothing": 0.0})
    config.optimizer.weight_decay = 0.01
    config.schedule.peak = 1e-3
    config.schedule.warmup_steps = 10
    config.train.log_every = 10
    config.train.eval_every = 50
    config.evals.validation.batches = 0
    config.checkpoint.every = 150
    return config
