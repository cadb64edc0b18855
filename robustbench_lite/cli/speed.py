"""What a program sets for its process, so that it does not wait or fetch memory for nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from pathlib import Path

# How often a thread of OpenMP looks for work before it sleeps, where cores are free and where they are not.
_LONG, _SHORT = "8000", "1000"
_LOOKS, _BETWEEN = 5, 0.004

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def prepare_process() -> None:
    """Before torch starts: threads wait as the machine's load lets them, and freed memory stays.

    Threads that wait by spinning take the cores from whoever works, and where nobody does, threads that soon sleep are
    woken late. Steps of a small network's training on two cores, in ms, alone and with one more process: 12 and 86 with
    20,000 looks, 12 and 52 with 8,000, 14 and 35 with 3,000, 16 and 27 with 1,000. A library leaves such
    settings to the program.
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = _LONG if cores_are_free() else _SHORT
    keep_memory()


def cores_are_free() -> bool:
    """Whether nobody else on the machine keeps a core busy that our threads would wait for; False if unknown.

    By the number of tasks that run or want to, the median of a few looks: a moment's work of others counts for nothing.
    """
    looks = []
    for _ in range(_LOOKS):
        running = _running()
        if running is None:
            return False
        looks.append(running)
        time.sleep(_BETWEEN)
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    ours = int(threads) if threads.isdecimal() else cores
    return sorted(looks)[_LOOKS // 2] - 1 + ours <= cores


def _running(stat: Path = Path("/proc/stat")) -> int | None:
    """Tasks that run or want to, this one among them; None where the system does not say."""
    try:
        found = re.search(r"^procs_running (\d+)$", stat.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


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
