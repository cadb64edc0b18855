"""robustbench-lite: how robust is this classifier, can the number be trusted, and does this defense help?

>>> import robustbench_lite as rbl
>>> r = rbl.evaluate(model, x, y, attack="pgd", norm="linf", eps=0.3)  # doctest: +SKIP
>>> r.robust_accuracy  # doctest: +SKIP
0.63

Names are imported when they are first asked for, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attack import Attack, Batch, State
    from .certification import certify
    from .certified import Certified
    from .certifier import Certifier
    from .data import Dataset, load_dataset
    from .defense import Defense, InferenceDefense, Loss, TrainingDefense
    from .errors import AccessError, PluginError, RblError, RecordError, UserError
    from .evaluation import evaluate
    from .losses import get_loss
    from .models import Normalize, load_model
    from .perturbation import perturb
    from .query import Gradient, Query
    from .recipe import Recipe
    from .result import Result
    from .rows import per_row
    from .streams import Stream, normal_like, uniform_like
    from .threat import Ball, Threat
    from .training import Trainer, train_model
    from .transfer import TransferMatrix, transfer_matrix

__version__ = "0.1.0"

_HOMES = {
    "attack": ("Attack", "Batch", "State"),
    "certification": ("certify",),
    "certified": ("Certified",),
    "certifier": ("Certifier",),
    "data": ("Dataset", "load_dataset"),
    "defense": ("Defense", "InferenceDefense", "Loss", "TrainingDefense"),
    "errors": ("AccessError", "PluginError", "RblError", "RecordError", "UserError"),
    "evaluation": ("evaluate",),
    "losses": ("get_loss",),
    "models": ("Normalize", "load_model"),
    "perturbation": ("perturb",),
    "query": ("Gradient", "Query"),
    "result": ("Result",),
    "rows": ("per_row",),
    "streams": ("Stream", "normal_like", "uniform_like"),
    "threat": ("Ball", "Threat"),
    "recipe": ("Recipe",),
    "training": ("Trainer", "train_model"),
    "transfer": ("TransferMatrix", "transfer_matrix"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AccessError",
    "Attack",
    "Ball",
    "Batch",
    "Certified",
    "Certifier",
    "Dataset",
    "Defense",
    "Gradient",
    "InferenceDefense",
    "Loss",
    "Normalize",
    "PluginError",
    "Query",
    "RblError",
    "Recipe",
    "RecordError",
    "Result",
    "State",
    "Stream",
    "Threat",
    "Trainer",
    "TrainingDefense",
    "TransferMatrix",
    "UserError",
    "certify",
    "evaluate",
    "get_loss",
    "load_dataset",
    "load_model",
    "normal_like",
    "per_row",
    "perturb",
    "train_model",
    "transfer_matrix",
    "uniform_like",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # A function may be called as its module is; the function is what the name means here.
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
