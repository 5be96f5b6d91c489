# SPDX-License-Identifier: Apache-2.0
"""The eval stage: python scripts/eval.py --config=configs/eval/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("eval")
