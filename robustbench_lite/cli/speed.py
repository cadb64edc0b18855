"""What a program sets for its process, so that it does not wait or fetch memory for nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def prepare_process() -> None:
    """Before torch starts: threads that wait sleep, and freed memory stays.

    Threads that wait by spinning take the cores from whoever works: with one more process on the machine a
    training was measured ten times slower. A library leaves such settings to the program.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_memory()


def keep_memory() -> None:
    """Tell glibc to give nothing back to the system; elsewhere nothing is done.

    Freed and asked for again, page by page, in each step, memory made a small network's gradient take
    about 1.5 times as long; whether it goes back hangs on how the heap happens to lie.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 64 << 20)
