"""One attack, or one close family, a file; found by the `name` of its class."""

if __name__ == "attacks":
    raise ImportError("import robustbench_lite.attacks: as a top-level package it would be a second copy of itself")
