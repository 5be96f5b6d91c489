# SPDX-License-Identifier: Apache-2.0
"""Plan a run: python scripts/plan.py --config=configs/pretrain/llama2_7b.py --topology=v5p:2x2x4"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("plan", {"topology": "", "compile": "false", "search": "false", "json": "false"})
