# SPDX-License-Identifier: Apache-2.0
"""Memory that was freed is kept: a second large buffer brings no page faults; pages are large."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from llm.core import heap
if sys.argv[1] == "keep":
    assert heap.keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 24)  # 128 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc only")
def test_a_large_buffer_is_given_out_again_without_page_faults():
    def second(mode):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert second("keep") * 10 < second("leave")


RESTART = """
import os
before = os.getpid(), os.environ.get("GLIBC_TUNABLES")
from llm.core import heap
heap.use_huge_pages()
print(before == (os.getpid(), os.environ["GLIBC_TUNABLES"]), os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
@pytest.mark.parametrize("given", ["", "glibc.malloc.hugetlb=0"])
def test_a_stage_starts_once_more_with_huge_pages_unless_told_otherwise(given):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if given:
        environment["GLIBC_TUNABLES"] = given
    made = subprocess.run(
        [sys.executable, "-c", RESTART], env=environment, capture_output=True, text=True, timeout=60
    )
    wanted = given or "glibc.malloc.hugetlb=1"
    assert made.stdout.split() == ["True", wanted], made.stderr
