# SPDX-License-Identifier: Apache-2.0
"""Learn from preferences in rounds: python scripts/rounds.py --config=configs/rounds/tiny.py"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("rounds")
