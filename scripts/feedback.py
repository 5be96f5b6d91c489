# SPDX-License-Identifier: Apache-2.0
"""Make and judge data: python scripts/feedback.py --config=configs/feedback/tiny.py"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("feedback")
