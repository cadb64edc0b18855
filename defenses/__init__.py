"""One defense a file; found by the `name` of its class."""

if __name__ == "defenses":
    raise ImportError("import robustbench_lite.defenses: as a top-level package it would be a second copy of itself")
