# SPDX-License-Identifier: Apache-2.0
"""Train WordPiece, BERT's kind of tokenizer, for encoders: it forgets spaces, case and accents.

    python scripts/tokenizer.py --config=configs/tokenizer/wordpiece.py \\
        --config.data.path=DOCUMENTS --workdir=runs/tokenizer

Hardware: CPU; about two minutes for 50 MB of text on two cores. Expect 4 to 4.5 bytes per token on
English prose; it does not give back the text it was given.
"""

from configs.tokenizer import bpe


def get_config():
    config = bpe.get_config()
    config.tokenizer = {
        "name": "wordpiece",
        "vocab_size": 30_000,
        "min_frequency": 2,
        "lowercase": True,
        "max_alphabet": 1000,
    }
    return config
