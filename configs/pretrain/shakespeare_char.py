# SPDX-License-Identifier: Apache-2.0
"""Train a character-level model on one plain text, such as the Shakespeare file of char-rnn.

    python scripts/pretrain.py --config=configs/pretrain/shakespeare_char.py --workdir=runs/char \\
        --config.data.path=input.txt

Hardware: any CPU with two cores. The first 90 % of the text train, the last 10 % validate: about
1.84 nats per character after 260 steps, a quarter of a minute (benchmarks/time_to_loss.py).
"""

from configs import common


def get_config():
    model = common.model(
        "1m",
        vocab_size=0,
        n_layers=2,
        d_model=96,
        n_heads=4,
        n_kv_heads=4,
        d_ff=256,
        max_length=64,
        qk_norm="head",
        tied_embeddings=False,
        scan_layers=False,
    )
    config = common.training(model, steps=260, batch_size=16, length=64)
    config.tokenizer.path = "char"
    config.data.source = "text"
    config.optimizer = {
        "name": "muon",
        "clip_norm": 1.0,
        "weight_decay": 0.0,
        "adam_scale": 1.0,
    }
    config.schedule = {
        "name": "wsd",
        "peak": 0.02,
        "warmup_steps": 10,
        "decay_fraction": 0.9,
        "end_fraction": 0.0,
    }
    config.train.log_every = 130
    config.train.eval_every = 130
    config.evals.validation.batches = 0
    config.checkpoint.every = 0
    return config
