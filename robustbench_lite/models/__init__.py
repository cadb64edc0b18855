"""Networks by name, file or factory: built, given weights or trained, and known by their hash."""

from __future__ import annotations

from .build import build_model, pretrained_preprocessing
from .identity import state_sha256, tensors_sha256
from .loading import LoadedModel, load_model, load_written
from .normalize import NAMED, Normalization, Normalize
from .weights import load_weights, read_weights, save_weights

__all__ = [
    "NAMED",
    "LoadedModel",
    "Normalization",
    "Normalize",
    "build_model",
    "load_model",
    "load_weights",
    "load_written",
    "pretrained_preprocessing",
    "read_weights",
    "save_weights",
    "state_sha256",
    "tensors_sha256",
]
