# SPDX-License-Identifier: Apache-2.0
"""Web archives and pages: articles extracted, cleaned by the web rules, copies dropped.

Command:  python scripts/corpus.py --config=configs/corpus/web.py \
              --config.source.path='crawl/*.warc.gz' --workdir=runs/web
Hardware: any machine; each worker needs one core and memory for one archive's text (about 1 GB).
Cost:     about 40 pages per second and core; source.mode=fast reads 300.
Expect:   .warc and .wet (.gz, .zst), .html and .htm (.gz), in any mixture. Corrupt records are
          skipped, counted and listed with their offsets in rejected.jsonl; more than
          source.max_error_rate of them end the run. For MediaWiki dumps set source.name=wiki.
"""

from ml_collections import ConfigDict

from configs.corpus import jsonl


def get_config() -> ConfigDict:
    """Return the settings."""
    config = jsonl.get_config()
    config.source = ConfigDict(
        {
            "name": "web",
            "path": "",
            "mode": "quality",
            "time_limit": 10.0,
            "max_documents": 0,
            "max_error_rate": 0.05,
        }
    )
    # In FineWeb's order: address, language, then the rules on the text.
    config.filters.names = ("url", "language", *config.filters.names)
    config.pii.types = ("email", "secret", "iban", "card", "ipv6", "ipv4", "ssn", "phone")
    config.dedup.url = True
    return config
