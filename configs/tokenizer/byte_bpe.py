# SPDX-License-Identifier: Apache-2.0
"""Train byte-level byte pairs, GPT-2's kind of tokenizer: lossless, no unknown characters.

    python scripts/tokenizer.py --config=configs/tokenizer/byte_bpe.py \\
        --config.data.path=DOCUMENTS --workdir=runs/tokenizer

Hardware: CPU; about half a minute for 50 MB of text on two cores. Expect 4 to 4.5 bytes per token
on English prose and a round trip of 100 %.
"""

from configs.tokenizer import bpe


def get_config():
    config = bpe.get_config()
    config.tokenizer = {
        "name": "byte_bpe",
        "vocab_size": 32_000,
        "min_frequency": 2,
        "split_digits": False,
    }
    return config
