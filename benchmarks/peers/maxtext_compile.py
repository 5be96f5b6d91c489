# SPDX-License-Identifier: Apache-2.0
"""The peer of tpu_programs.py: what the TPU compiler says of MaxText's training step.

Runs MaxText's own `train_compile` and prints one JSON line when its program is compiled. Needs a
Python 3.12 with `pip install 'maxtext[tpu]==0.2.5'`; called by tpu_programs.py with --peer-python.

    python benchmarks/peers/maxtext_compile.py OUT.hlo KEY=VALUE ...   (MaxText's own keys)
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", DECOUPLE_GCLOUD="TRUE")


def main(out, options):
    """Compile, write the program to a file and print its sizes."""
    import maxtext
    from maxtext.trainers.pre_train import train_compile

    plain = train_compile.jit_and_compile

    def report(*args, **kwargs):
        compiled = plain(*args, **kwargs)
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        Path(out).write_text(compiled.as_text())
        figures = {
            "arguments": memory.argument_size_in_bytes,
            "allocated": memory.temp_size_in_bytes,
            "total": memory.peak_memory_in_bytes,
            "flops": cost["flops"],
            "bytes_accessed": cost["bytes accessed"],
        }
        print(json.dumps(figures), flush=True)
        os._exit(0)  # its next step would run the program

    train_compile.jit_and_compile = report
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    train_compile.main(["train_compile", str(base), *options])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
