# SPDX-License-Identifier: Apache-2.0
"""Start a run again when it was preempted or lost a peer: python scripts/supervise.py -- COMMAND"""

import sys

from llm.core.supervise import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
