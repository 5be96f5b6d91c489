# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: documentation of Python and of this project's core dependencies.

Command:  python scripts/corpus.py --config=configs/corpus/pydocs.py --workdir=runs/corpus
Hardware: any machine; 2 CPU cores, 1 GB of memory, 200 MB of disk.
Cost:     about 35 CPU seconds, 20 seconds on two free cores.
Expect:   about 30,000 documents and 21 MB read; about 95 % of them kept, 2 % of the bytes for
          validation; planted copies and addresses found with recall and precision near 1.
"""

from ml_collections import ConfigDict

from llm.corpus import filters


def get_config() -> ConfigDict:
    """Return the settings."""
    config = ConfigDict()
    config.seed = 0
    # packages=() reads all that llm/corpus/pydocs.py lists.
    config.source = ConfigDict(
        {
            "name": "pydocs",
            "packages": (),
            "kinds": ("docstring", "topic", "html", "licence", "metadata"),
            "max_documents": 0,
            "shards": 16,
        }
    )
    config.normalise = ConfigDict(
        {
            "form": "NFC",
            "quotes": False,
            "mojibake": True,
            "max_newlines": 3,
            "lower": False,
            "unwrap": False,
            "emoji": False,  # True writes them as names
        }
    )
    config.filters = ConfigDict(filters.section(filters.DOCUMENTATION))
    config.pii = ConfigDict({"types": ("email",), "style": "label", "seed": 0})
    config.dedup = ConfigDict(
        {
            "url": False,
            "exact": True,
            "near": "drop",
            "threshold": 0.7,
            "keep": "longest",
            "bands": 14,
            "rows": 8,
            "n_gram": 5,
            # How many make a run that stays only once, such as 50 words; 0 looks for none.
            "repeats": {"paragraphs": 0, "lines": 0, "sentences": 0, "words": 0},
            "min_run_chars": 40,
            "min_left_chars": 100,
            "against": (),  # workdirs of earlier corpora, whose documents are not taken again
        }
    )
    # count: whom the text speaks of, for the report; augment: share of training documents that come
    # once more with genders exchanged; balance: documents of one gender per document of the other.
    config.bias = ConfigDict({"count": True, "window": 10, "augment": 0.0, "balance": 0.0})
    config.split = ConfigDict({"validation": 0.02, "by_group": True})
    # name="beam" runs the same functions by Apache Beam, with the options of its pipeline.
    config.engine = ConfigDict(
        {"name": "local", "workers": 2, "shard_bytes": 8_000_000, "options": ()}
    )
    # Known defects are planted, measured and removed again; kinds=() plants none. The kind "span"
    # tells something only with repeats.words.
    config.inject = ConfigDict({"kinds": ("exact", "near", "email", "mojibake"), "rate": 0.02})
    return config
