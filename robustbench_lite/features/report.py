"""What fresh networks learn from each constructed data set, tested on real images, with the controls beside."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..cache import cache_dir
from ..data import balanced_subset, load_dataset
from ..data.dataset import Dataset
from ..data_request import DataRequest
from ..network import Network, Noise, exact_float32, frozen, placed
from ..plan import make_threat
from ..prepare import prepare_model
from ..streams import Stream
from .building import build, describe
from .construction import Construction, Workshop
from .leakage import leakage
from .study import RECIPE, Study, part

if TYPE_CHECKING:
    import pandas as pd

    from ..loop import TrainingProgress
    from ..models import LoadedModel

DATA, DATA_SYMBOL = "data", "D"
EARLY = 1000  # images that the early network sees at least
NETWORK, LINEAR = "network", "linear on robust features"


@dataclass(frozen=True)
class Bars:
    """How progress is shown: a bar for a training of that label, and one for so many images."""

    training: Callable[[str], contextlib.AbstractContextManager[Callable[[TrainingProgress], None] | None]] = field(
        default=lambda _label: contextlib.nullcontext(None)
    )
    count: Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None] | None]] = field(
        default=lambda _label, _total: contextlib.nullcontext(None)
    )


@dataclass(frozen=True)
class Lesson:
    """What fresh networks learn from: a data set's name and symbol, its splits, and `reached` as `_reached` says."""

    name: str
    symbol: str
    request: DataRequest
    reached: float


@dataclass(frozen=True)
class Report:
    """What was found.

    rows: a row a data set and fresh network, and one a data set for the linear layer on robust features. chance: the
    share of the test images that are of the most frequent class, the best that knowing nothing gets. folders: of the
    constructed data sets, by name. networks: accuracy of those whose features were used. said: what decided it.
    """

    rows: pd.DataFrame
    chance: float
    folders: dict[str, Path]
    networks: dict[str, float]
    said: dict[str, Any]

    def summary(self) -> list[dict[str, Any]]:
        """A row a data set: means over the seeds, the least and the most, and what robust features alone give."""
        found = []
        for name, rows in self.rows.groupby("set", sort=False):
            nets, linear = rows[rows["learner"] == NETWORK], rows[rows["learner"] == LINEAR]
            found.append(
                {
                    "set": name,
                    "symbol": rows["symbol"].iloc[0],
                    "images": int(rows["images"].iloc[0]),
                    "seeds": len(nets),
                    "accuracy": float(nets["accuracy"].mean()),
                    "accuracy_low": float(nets["accuracy"].min()),
                    "accuracy_high": float(nets["accuracy"].max()),
                    "robust_accuracy": float(nets["robust_accuracy"].mean()),
                    "next_class": float(nets["next_class"].mean()),
                    "linear_on_robust_features": float(linear["accuracy"].iloc[0]) if len(linear) else None,
                    "reached": _known(rows["reached"].iloc[0]),
                }
            )
        return found


def _known(value: float) -> float | None:
    return None if value != value else float(value)


def report(
    study: Study,
    *,
    bars: Bars | None = None,
    stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
) -> Report:
    """Train fresh networks on the data and on each construction, and test them all on real, rightly labelled images.

    What was trained or built before comes from the cache, so that a report which was killed goes on.
    Raises UserError, RecordError and Interrupted as training, `build` and `evaluate` do.
    """
    import pandas as pd

    bars = bars or Bars()
    test, train = study.request.load("test"), study.request.load("train")
    samples = len(train) if study.samples is None else study.samples
    index = balanced_subset(train.labels, samples)
    constructions = [construction.resolve(train) for construction in study.constructions]
    needed = sorted({"robust", *(c.network for c in constructions)})
    networks = {name: _source(study, name, test, train, bars) for name in needed}
    whole = study.request.answered(train=part(train, samples), test=test)
    lessons = {DATA: Lesson(DATA, DATA_SYMBOL, whole, math.nan)}
    folders: dict[str, Path] = {}
    for construction in constructions:
        every = torch.arange(len(train)) if construction.network == "early" else index
        folder = _built(study, construction, networks[construction.network], train, test, every, bars, stop)
        made = load_dataset(f"parquet:{folder}", split="train", workers=study.request.workers)
        request = study.request.answered(train=made, test=test)
        folders[construction.name] = folder
        lessons[construction.name] = Lesson(construction.name, construction.symbol, request, _reached(folder))
    rows: list[dict[str, Any]] = []
    for lesson in lessons.values():
        rows += _learned(study, lesson, networks["robust"], test, bars, note)
    chance = float(torch.bincount(test.labels).max()) / len(test)
    frame = pd.DataFrame(rows).astype({"robust_accuracy": "float64", "next_class": "float64"})
    frame["chance"] = chance
    accuracies = {name: _accuracy(model.module, test, study.device)[0] for name, model in networks.items()}
    return Report(frame, chance, folders, accuracies, _said(study, networks, constructions, train, test, samples))


def _learned(
    study: Study,
    lesson: Lesson,
    robust: LoadedModel,
    test: Dataset,
    bars: Bars,
    note: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    """The rows of one data set: a fresh network a seed, and a linear layer on the robust network's features."""
    data = lesson.request.load("train")
    shared = {"set": lesson.name, "symbol": lesson.symbol, "images": len(data), "reached": lesson.reached}
    rows = []
    for seed in range(study.seed + 1, study.seed + 1 + study.seeds):
        with bars.training(f"training on {lesson.symbol}, {seed}") as progress:
            fresh = prepare_model(
                study.model,
                lesson.request,
                test,
                recipe={**RECIPE, **study.recipe, "seed": seed},
                retrain=True,
                device=study.device,
                progress=progress,
                normalize=study.normalize,
            )
        rows.append({**shared, "learner": NETWORK, "seed": seed, **_tested(study, fresh, test, note)})
    with placed(robust.module, study.device) as module, frozen(module):
        found = leakage(Workshop(data, module, seed=study.seed, device=study.device), data, test)
    linear = {"learner": LINEAR, "seed": -1, "accuracy": found, "robust_accuracy": None, "next_class": None}
    return [*rows, {**shared, **linear}]


def _source(study: Study, name: str, test: Dataset, train: Dataset, bars: Bars) -> LoadedModel:
    """A network whose features are used: trained by the standard recipe, by the defenses, or only a little."""
    data = train
    recipe: dict[str, Any] = {"seed": study.seed}
    if study.source_epochs is not None:
        recipe["epochs"] = study.source_epochs
    if name == "early":
        few = min(len(train), max(EARLY, len(train) // 20)) if study.early_samples is None else study.early_samples
        data = part(train, few)
        recipe["epochs"] = 1
    with bars.training(f"training {name}") as progress:
        return prepare_model(
            study.model,
            study.request.answered(train=data, test=test),
            test,
            defenses=study.defenses if name == "robust" else (),
            recipe=recipe,
            retrain=True,
            device=study.device,
            progress=progress,
            normalize=study.normalize,
        )


def _built(
    study: Study,
    construction: Construction,
    model: LoadedModel,
    train: Dataset,
    test: Dataset,
    index: torch.Tensor,
    bars: Bars,
    stop: Callable[[], bool] | None,
) -> Path:
    """The construction's data set, in the cache under what decides it."""
    decided = [describe(construction, model, train, index, seed=study.seed, device=study.device), test.fingerprint]
    key = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "features" / f"{construction.name}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with bars.count(f"building {construction.symbol}", len(index)) as progress:
        made = build(
            construction,
            model,
            train,
            out=folder,
            index=index,
            test=test,
            seed=study.seed,
            batch_size=study.batch_size,
            device=study.device,
            progress=progress,
            stop=stop,
        )
    return made.folder


def _reached(folder: Path) -> float:
    """The share of images that an attack brought to its class; NaN where nothing was aimed at."""
    import pyarrow.parquet as pq

    from .storage import TRAIN

    table = pq.read_table(folder / TRAIN)
    return float(table["reached"].to_numpy().mean()) if "reached" in table.column_names else float("nan")


def _tested(study: Study, fresh: LoadedModel, test: Dataset, note: Callable[[str], None] | None) -> dict[str, float]:
    """On real images: accuracy, the share that is taken for the class after its own, and accuracy under the attack."""
    from ..evaluation import evaluate

    accuracy, after = _accuracy(fresh.module, test, study.device)
    index = balanced_subset(test.labels, min(study.robust_samples, len(test)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate(
            fresh.module,
            test.images(index),
            test.labels[index],
            attack=study.attack,
            norm=study.norm,
            eps=study.eps,
            attack_options=study.attack_options,
            seed=study.seed,
            batch_size=study.batch_size,
            device=study.device,
            checks=False,
        )
    if note is not None:
        # That a network is at chance is what some of these data sets are made to show.
        texts = dict.fromkeys(text for one in caught if "at chance" not in (text := str(one.message)))
        for text in texts:
            note(f"robust accuracy: {text}")
    return {"accuracy": accuracy, "robust_accuracy": found.robust_accuracy, "next_class": after}


def _accuracy(module: nn.Module, test: Dataset, device: str) -> tuple[float, float]:
    """Shares of the test images that are taken for their own class and for the one after it."""
    right = after = 0
    with placed(module, device), frozen(module), exact_float32():
        network = Network(module, n_classes=len(test.classes), device=device)
        for index, x, y in test.blocks(torch.arange(len(test)), 512):
            place = index.to(device)
            said = network.logits(x.to(device), Noise(Stream(place), torch.zeros_like(place))).argmax(1).cpu()
            right += int((said == y).sum())
            after += int((said == (y + 1) % len(test.classes)).sum())
    return right / len(test), after / len(test)


def _said(
    study: Study,
    networks: Mapping[str, LoadedModel],
    constructions: Sequence[Construction],
    train: Dataset,
    test: Dataset,
    samples: int,
) -> dict[str, Any]:
    from .. import __version__

    return {
        "format": "robustbench-lite features report 1",
        "version": __version__,
        "model": study.model,
        "dataset": {
            "name": train.name,
            "train_fingerprint": train.fingerprint,
            "test_fingerprint": test.fingerprint,
            "test_images": len(test),
            "samples": samples,
        },
        "networks": {name: {"sha256": model.sha256, "recipe": model.recipe} for name, model in networks.items()},
        "constructions": {c.name: dataclasses.asdict(c) for c in constructions},
        "recipe": {key: str(value) for key, value in {**RECIPE, **study.recipe}.items()},
        "seed": study.seed,
        "seeds": study.seeds,
        "attack": {
            "name": study.attack,
            "norm": study.norm,
            "eps": make_threat(study.norm, study.eps).eps,
            "options": {key: str(value) for key, value in study.attack_options.items()},
            "samples": min(study.robust_samples, len(test)),
        },
    }
