# SPDX-License-Identifier: Apache-2.0
"""Train on two sources with a curriculum: shares by size at first, more of the second at the end.

    python scripts/pretrain.py --config=configs/pretrain/tiny_mixture.py --workdir=runs/mixture \
        --config.data.mixture.web.path=runs/corpus --config.data.mixture.best.path=runs/corpus

Hardware: any CPU with two cores, about 30 seconds. Expect a validation loss near 2.6 nats/byte.
Both sources are installed documentation where no path is given. A part of the mixture holds the
options of its source, and weight, tokens (a budget of the whole run) and max_epochs; data.mixing
holds temperature (0 takes the weights, 1 multiplies them by the sizes) and phases.
"""

from ml_collections import ConfigDict

from configs.pretrain import tiny


def get_config():
    config = tiny.get_config()
    config.data.mixture = ConfigDict(
        {
            "web": {"path": "", "weight": 1.0, "tokens": 0, "max_epochs": 0},
            # min_quality=0.5 would take only what config.filters.quality_model found good
            "best": {"path": "", "weight": 1.0, "tokens": 0, "max_epochs": 2, "min_quality": 0.0},
        }
    )
    config.data.mixing = ConfigDict(
        {
            "temperature": 1.0,
            "phases": {"end": {"start": 150, "weights": {"web": 1.0, "best": 4.0}}},
        }
    )
    config.evals = ConfigDict(
        {
            name: {"split": f"{name}/validation", "every": 0, "batches": 4}
            for name in config.data.mixture
        }
    )
    return config
