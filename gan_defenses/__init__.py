"""Generative networks, and the attacks and defenses made of them."""

if __name__ == "gan_defenses":
    raise ImportError(
        "import robustbench_lite.gan_defenses: as a top-level package it would be a second copy of itself"
    )
