# SPDX-License-Identifier: Apache-2.0
"""Run: python scripts/tokenizer.py --config=configs/tokenizer/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("tokenizer")
