# SPDX-License-Identifier: Apache-2.0
"""The C library's memory on a CPU: fewer and larger pages, and no page paid for twice.

XLA's CPU backend takes the buffers of a step from malloc and frees them at its end. glibc returns
large ones to the system at once, and the next step pays for every page of 4 KiB again.
"""

import ctypes
import os
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


def use_huge_pages() -> None:
    """Start this program again with its memory in huge pages, unless the user has set glibc's.

    glibc reads the setting only as a program begins; the new one has the old one's process id.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
