# SPDX-License-Identifier: Apache-2.0
"""Continue a prompt with a model: python scripts/generate.py --model=DIR --prompt=TEXT [--chat]"""

from llm.generate.cli import run

if __name__ == "__main__":
    run()
