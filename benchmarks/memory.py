"""Memory that stays with the process: freed and asked for again in each step, it would be timed with the attacks."""

from __future__ import annotations

import contextlib
import ctypes

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_memory() -> None:
    """Tell glibc to give nothing back to the system; elsewhere nothing is done.

    Whether a step's memory goes back at its end hangs on how the heap happens to lie, not on who computes:
    the same 40 gradients took up to 0.35 s more of 1.9 in page faults, in some processes and not in others.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 64 << 20)
