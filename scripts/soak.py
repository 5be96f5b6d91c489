# SPDX-License-Identifier: Apache-2.0
"""Random faults in real runs, resumed and compared: python scripts/soak.py --runs=20 --seed=1"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(ROOT))
    from tests.faults.soak import main

    sys.exit(main(sys.argv[1:]))
