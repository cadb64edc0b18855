"""From what a user says to what a run needs: data set, defenses and model by name, trained where they must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_request import DataRequest
from .errors import UserError
from .options import configure, option_types, owner_of, parse_pairs
from .registry import builtins, find

if TYPE_CHECKING:
    import torch

    from .attack import Attack
    from .data import Dataset
    from .defense import Defense, InferenceDefense
    from .fitting import FitData
    from .history import History
    from .loop import TrainingProgress
    from .models import LoadedModel, Normalization
    from .threat import Threat


class Untrained(UserError):
    """A network is not in the cache, and was not to be trained."""


def make_defenses(specs: Sequence[str], options: Sequence[str] = ()) -> list[Defense]:
    """The defenses that `specs` name, in order, with options `KEY=VALUE` or `DEFENSE.KEY=VALUE`.

    A key without a defense goes to the one that has it. Raises UserError for unknown names and options,
    for a key that several of them have, and for an order in which they cannot stand before a network.
    """
    from .defense import InferenceDefense, TrainingDefense, check_stack
    from .stacking import check_losses

    classes = defense_classes(specs)
    given: list[dict[str, str]] = [{} for _ in classes]
    names = [{spec, cls.name} for spec, cls in zip(specs, classes, strict=True)]
    known, labels = [option_types(cls) for cls in classes], [cls.name for cls in classes]
    for key, value in parse_pairs("--defense-option", options).items():
        place, option = owner_of(key, names, known, labels, argument="--defense-option", kind="--defense")
        given[place][option] = value
    made = [configure(cls, own, argument="--defense-option") for cls, own in zip(classes, given, strict=True)]
    check_stack([defense for defense in made if isinstance(defense, InferenceDefense)], argument="--defense")
    check_losses([defense for defense in made if isinstance(defense, TrainingDefense)], argument="--defense")
    return made


def defense_classes(specs: Sequence[str]) -> list[type[Defense]]:
    """The classes that `specs` name, in order; raises UserError for an unknown name and for what is no defense."""
    from .defense import InferenceDefense, TrainingDefense

    classes: list[type[Defense]] = []
    for spec in specs:
        cls = find("defenses", spec, argument="--defense").load()
        if not (isinstance(cls, type) and issubclass(cls, (InferenceDefense, TrainingDefense))):
            raise UserError(
                f"--defense: {spec} is neither an InferenceDefense nor a TrainingDefense; see rbl defenses new"
            )
        classes.append(cls)
    return classes


def prepare_model(
    spec: str,
    request: DataRequest,
    data: Dataset,
    *,
    weights: str | None = None,
    defenses: Sequence[Defense] = (),
    recipe: Mapping[str, Any] | None = None,
    retrain: bool = False,
    unlabeled: str | None = None,
    binary: bool = False,
    may_train: bool = True,
    device: torch.device | str = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
    normalize: Normalization | None = None,
) -> LoadedModel:
    """The network that `spec` names for this data set, with its weights, trained where it has none.

    recipe: parts of the `Recipe` by name, as text or values; what is left open the defenses state.
    unlabeled: a data set whose training images join without their labels. binary: as for `load_model`.
    may_train: where not, Untrained is raised for a network that would have to be trained.
    retrain: train also a factory's network, and one with weights, from where it stands; a train-time
    defense does so in any case. A network that was trained before for the same data set by the same
    recipe comes from the cache. Weights that were trained by the same defenses are not trained again.
    normalize: put before the network, of whose normalised images the weights are (`load_model`).
    Of the inference-time defenses only those matter behind which a network is trained, and what it then sees.
    """
    from .decided import describe, describe_defenses
    from .defense import Defended, InferenceDefense, TrainingDefense, wrap_all
    from .models import load_model
    from .models.advice import missing_normalization
    from .processes import main_process
    from .recipe import recipe_for
    from .training import train_model

    fitting = [d for d in defenses if isinstance(d, TrainingDefense)]
    standing = [d for d in defenses if isinstance(d, InferenceDefense)]
    behind = [d for d in standing if d.trained_behind]
    _check_behind(weights, behind)
    shape = data.shape
    for defense in standing:
        shape = defense.seen_shape(shape)
    whole = recipe_for(fitting, recipe or {}, argument="--train-option")
    if fitting and weights and _trained_with(weights) == [_told(d) for d in describe_defenses(fitting)]:
        if note:
            note(f"{weights} was trained with {' + '.join(d.name for d in fitting)}; it is taken as it is")
        fitting = []
    retrain = retrain or bool(fitting)
    ready = weights is not None or _is_factory(spec)
    train_set = request.load("train") if retrain or not ready else None
    try:
        more = dataclasses.replace(request, dataset=unlabeled).load("train") if unlabeled else None
    except UserError as error:
        raise UserError(str(error).replace("--dataset:", "--unlabeled:", 1)) from error
    if more is not None and train_set is not None and more.shape != train_set.shape:
        raise UserError(f"--unlabeled: expected images {train_set.shape} as in --dataset, got {more.shape}")

    def train(module: torch.nn.Module, *, checkpoint: Path, history: History) -> torch.nn.Module:
        assert train_set is not None
        if not may_train:
            raise Untrained(f"{spec} on {data.name} is not trained yet")
        if note and main_process():
            names = [d.name for d in (*fitting, *behind)]
            with_ = f" with {' + '.join(names)}" if names else ""
            note(f"training {spec} on {data.name}{with_}: {len(train_set)} images, once; it is kept in the cache")
        network = wrap_all(module, behind)
        if _is_factory(spec):
            _try(network, train_set)
        trained = train_model(
            network,
            train_set,
            recipe=whole,
            defenses=fitting,
            device=device,
            progress=progress,
            say=note,
            checkpoint=checkpoint,
            history=history,
            unlabeled=more,
        )
        for _ in behind:
            assert isinstance(trained, Defended)
            trained = trained.model
        return trained

    described = describe(train_set, whole, fitting, more) if train_set is not None else None
    if described is not None and behind:
        described["behind"] = describe_defenses(behind)
    loaded = load_model(
        spec,
        n_classes=len(data.classes),
        shape=shape,
        weights=weights,
        train=train if train_set is not None else None,
        recipe=described,
        retrain=retrain and ready,
        seed=whole.seed,
        normalize=normalize,
        binary=binary,
        images=_few(data, shape) if _is_factory(spec) else None,
    )
    if note and main_process():
        for text in loaded.notes:
            note(f"{loaded.name}: {text}")
    if note and train_set is None and (advice := missing_normalization(spec, weights, loaded.module)):
        note(f"warning: {advice}")
    return loaded


def _few(data: Dataset, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Some images, by which a network is tried; None where it sees others in their place."""
    import torch

    if tuple(data.shape) != tuple(shape):
        return None
    return data.images(torch.linspace(0, len(data) - 1, min(64, len(data))).long())


def _told(described: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return described["name"], dict(described["options"])


def _trained_with(weights: str, part: str = "defenses") -> list[tuple[str, dict[str, Any]]]:
    """The defenses that the recipe inside a weights file names, with their options; none where it has none.

    part: "defenses", with which it was trained, or "behind", those that stood before the network.
    """
    from .errors import RblError
    from .models.weights import read_weights

    if ".safetensors" not in weights:
        return []
    try:
        said = read_weights(weights)[1]
    except RblError:
        return []  # what is wrong with the file is told where it is loaded
    return [_told(described) for described in (said.get("recipe") or {}).get(part, [])]


def _check_behind(weights: str | None, behind: Sequence[InferenceDefense]) -> None:
    """Raise UserError for a network that is taken from behind the defense that it was trained behind."""
    from .decided import describe_defenses

    trained = _trained_with(weights, "behind") if weights else []
    if trained and trained != [_told(d) for d in describe_defenses(behind)]:
        name, options = trained[0]
        given = "".join(f" --defense-option {key}={value}" for key, value in options.items())
        raise UserError(f"--weights: {weights} was trained behind {name}; add --defense {name}{given}")


def fit_images(request: DataRequest, attack: Attack, threat: Threat, count: int | None = None) -> FitData | None:
    """`count` images of the training split, class-balanced, for an attack that learns; None for one that does not."""
    from .data import balanced_subset
    from .fitting import FIT_SAMPLES, FitData, needs_fit

    if count is not None and count < 1:
        raise UserError(f"--fit-samples must be >= 1, got {count}")
    if not needs_fit(attack, threat):
        return None
    data = request.load("train")
    index = balanced_subset(data.labels, min(count or FIT_SAMPLES, len(data)))
    return FitData(data.images(index), data.labels[index], "train")


def defense_images(request: DataRequest, defenses: Sequence[Defense]) -> FitData | None:
    """Images of the training split, class-balanced, for inference-time defenses that learn; None where none does."""
    from .data import balanced_subset
    from .defense import InferenceDefense
    from .fitting import FitData

    count = max((d.fit_samples for d in defenses if isinstance(d, InferenceDefense)), default=0)
    if not count:
        return None
    data = request.load("train")
    index = balanced_subset(data.labels, min(count, len(data)))
    return FitData(data.images(index), data.labels[index], "train")


def recorded_defenses(network: LoadedModel, defenses: Sequence[Defense]) -> list[Defense]:
    """The train-time defenses that made a network, by its recipe, which a record of it names as well as `defenses`."""
    given = {d.name for d in defenses}
    made: list[Defense] = []
    for described in (network.recipe or {}).get("defenses", []):
        known = builtins("defenses").get(described["name"])
        if known is not None and described["name"] not in given:
            made.append(configure(known.load(), described["options"], argument="the recipe of --weights"))
    return made


def _try(module: torch.nn.Module, data: Dataset) -> None:
    """Two images through a network that somebody else wrote, so that what is wrong with it is its own fault."""
    import torch

    from .network import Network, Noise, frozen
    from .streams import Stream

    rows = torch.arange(min(2, len(data)))
    with frozen(module), torch.random.fork_rng():
        Network(module, n_classes=len(data.classes)).logits(data.images(rows), Noise(Stream(rows), rows))


def _is_factory(spec: str) -> bool:
    from .models.build import find_source

    return find_source(spec).is_factory


def pick_device(device: str) -> str:
    """`auto` made into cuda where there is one, else cpu. UserError for a device that is not there."""
    import torch

    from .network import usable_device

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device(device)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`I/N` as numbers, 1 <= I <= N."""
    if text is None:
        return None
    first, slash, count = text.partition("/")
    if not slash or not (first.isdecimal() and count.isdecimal()) or not 1 <= int(first) <= int(count):
        raise UserError(f"--shard must be I/N with 1 <= I <= N, got {text!r}; the first of four is 1/4")
    return int(first), int(count)
