# SPDX-License-Identifier: Apache-2.0
"""Pre-train a bidirectional encoder in BERT-base's shape by masked language modelling.

    python scripts/pretrain.py --config=configs/pretrain/bert_base.py --workdir=runs/bert \\
        --config.data.path=runs/corpus --config.tokenizer.path=path/to/tokenizer

Hardware: one accelerator of 16 GB or more. 15 % of the tokens are hidden anew at every draw; there
is no next-sentence task (RoBERTa showed it to be useless).
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    model = common.model("bert_base", vocab_size=0, dtype="bfloat16", dropout=0.1)
    config = common.training(model, steps=1_000_000, batch_size=256, length=512)
    config.data.corruption = ConfigDict({"name": "mlm", "rate": 0.15, "whole_words": False})
    config.objective.name = "mlm"
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.schedule = ConfigDict(
        {"name": "warmup_linear", "peak": 1e-4, "warmup_steps": 10_000, "end_fraction": 0.0}
    )
    config.checkpoint.every = 5000
    config.train.eval_every = 5000
    return config
