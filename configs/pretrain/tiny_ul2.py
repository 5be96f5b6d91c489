# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level encoder-decoder on UL2's mixture of denoisers, with mode tokens.

    python scripts/pretrain.py --config=configs/pretrain/tiny_ul2.py --workdir=runs/ul2

Hardware: any CPU with two cores, about a minute. For a decoder instead, which sees the corrupted
text as its prefix, use tiny.py's model and --config.data.corruption.decoder_only=true.
"""

from ml_collections import ConfigDict

from configs.pretrain import tiny_t5


def get_config():
    config = tiny_t5.get_config()
    config.data.corruption = ConfigDict({"name": "ul2", "decoder_only": False})
    config.objective.name = "ul2"
    return config
