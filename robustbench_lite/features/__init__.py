"""Robust and non-robust features: data sets made of one kind alone, what is learned from them, and their measure.

After Ilyas et al. 2019, "Adversarial examples are not bugs, they are features" (arXiv:1905.02175).
"""

from __future__ import annotations

from ..penultimate import Penultimate, last_linear
from .building import Built, build
from .construction import Block, Construction, Made, Workshop, make_construction
from .storage import provenance

__all__ = [
    "Block",
    "Built",
    "Construction",
    "Made",
    "Penultimate",
    "Workshop",
    "build",
    "last_linear",
    "make_construction",
    "provenance",
]
