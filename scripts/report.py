# SPDX-License-Identifier: Apache-2.0
"""Join the stages' folders into one page: python scripts/report.py --runs=runs/quickstart"""

import sys

from llm.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
