# SPDX-License-Identifier: Apache-2.0
"""The C library's memory on a CPU: keep what was freed, because getting it back costs page faults.

XLA's CPU backend takes the buffers of a step from malloc and frees them at its end. glibc returns
large ones to the system at once, and the next step pays for every page again.
"""

import ctypes
import sys

# Numbers of <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Let this process keep the memory that it frees; return whether the C library agreed.

    Large blocks come from the one main heap, which is never trimmed: the process stays as large as
    it was at its largest.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all([mallopt(option, value) for option, value in options])
