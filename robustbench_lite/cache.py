"""Where what can be made again is kept on disk."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for trained networks and other things that can be made again; it may not exist yet.

    The environment variable `RBL_CACHE` names it, else it is the platform's own place for caches.
    """
    given = os.environ.get("RBL_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("robustbench-lite")
