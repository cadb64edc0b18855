"""What decides a training, as plain JSON: by it networks are known in the cache and in the recipes of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .defense import Defense, InferenceDefense, TrainingDefense
from .files import sha256_file
from .processes import process_count
from .recipe import Recipe
from .registry import source_hash

if TYPE_CHECKING:
    from .data.dataset import Dataset


def describe(
    data: Dataset, recipe: Recipe, defenses: Sequence[TrainingDefense] = (), unlabeled: Dataset | None = None
) -> dict[str, Any]:
    """All that decides what `train_model` makes of a network, as plain JSON values.

    A defense is described by its name, its options and the SHA-256 of its source file, of those of the classes that it
    is made from, and of the files that its options name.
    """
    described: dict[str, Any] = {
        "dataset": _told(data),
        **dataclasses.asdict(recipe.resolve(len(data))),
        "defenses": describe_defenses(defenses),
    }
    if process_count() > 1 and (defenses or unlabeled is not None):
        described["processes"] = process_count()  # each draws noise and unlabeled images of its own
    if unlabeled is not None:
        described["unlabeled"] = _told(unlabeled)
    return described


def _told(data: Dataset) -> dict[str, Any]:
    return {"name": data.name, "split": data.split, "n": len(data), "fingerprint": data.fingerprint}


def describe_defenses(defenses: Sequence[Defense]) -> list[dict[str, Any]]:
    """What `describe` says of the defenses."""
    return [_describe(defense) for defense in defenses]


def _describe(defense: Defense) -> dict[str, Any]:
    plain = {
        key: value if isinstance(value, bool | int | float | str | None) else repr(value)
        for key, value in dataclasses.asdict(defense).items()
    }
    # An option may name files (an attack of the user's own, other networks), which decide the result too.
    said = [part for value in plain.values() if isinstance(value, str) for part in value.split(",")]
    named = [Path(part.rpartition(":")[0] if ".py:" in part else part) for part in said]
    sources = {file.name: sha256_file(file) for file in named if file.suffix and file.is_file()}
    contracts = (Defense, TrainingDefense, InferenceDefense, object)
    bases = [base for base in type(defense).__mro__[1:] if base not in contracts]
    sources |= {base.__name__: hashed for base in bases if (hashed := source_hash(base))}
    return {
        "name": defense.name,
        "options": plain,
        "source_sha256": source_hash(type(defense)),
        "plugins": sources,
    }
