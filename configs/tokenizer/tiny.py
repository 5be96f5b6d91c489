# SPDX-License-Identifier: Apache-2.0
"""Train a small byte-pair tokenizer on Python's own help topics, or on any documents, in seconds.

    python scripts/tokenizer.py --config=configs/tokenizer/tiny.py --workdir=runs/tokenizer

Hardware: any CPU, about two seconds. Expect about 3 bytes per token and a round trip of 100 %.
"""

from configs.tokenizer import bpe


def get_config():
    config = bpe.get_config()
    config.tokenizer.vocab_size = 2048
    config.data.sample_bytes = 4_000_000
    config.data.measure_bytes = 1_000_000
    return config
