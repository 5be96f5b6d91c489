# SPDX-License-Identifier: Apache-2.0
"""Train a SentencePiece unigram tokenizer with byte fallback.

    python scripts/tokenizer.py --config=configs/tokenizer/unigram.py \\
        --config.data.path=DOCUMENTS --workdir=runs/tokenizer

Hardware: CPU; about five minutes for 50 MB of text on two cores. Expect 4 to 4.5 bytes per token on
English prose and a round trip of 100 %.
"""

from configs.tokenizer import bpe


def get_config():
    config = bpe.get_config()
    config.tokenizer.name = "unigram"
    return config
