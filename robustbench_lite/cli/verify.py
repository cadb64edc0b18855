"""`rbl verify`: a run's saved examples checked again, by a pass that shares nothing with the engine."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..defense import Defense
    from ..models import LoadedModel, Normalization
    from ..records.run import Run
    from ..reverify import Reverification

EPILOG = """\
[bold]Examples[/]

rbl evaluate --model resnet18 --attack pgd --save-examples out.npz

rbl verify RUN_ID --model resnet18 --examples out.npz

rbl verify results/runs/RUN_ID.parquet --model net.py:make --weights net.pth --defense bit-depth
"""


def verify(
    run: Annotated[str, typer.Argument(help="A run's id, or the path of its file.", metavar="RUN")],
    model: o.Model,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    weights_prefix: o.WeightsPrefix = None,
    binary: o.Binary = False,
    defense: o.Defenses = None,
    defense_option: o.DefenseOptions = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data set of a network that is trained, not loaded; default the run's.", rich_help_panel="Data"
        ),
    ] = None,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    workers: o.Workers = 2,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    examples: Annotated[
        Path | None,
        typer.Option(
            help="PATH.npz of the run's images; default the file that the run names, beside it or in this folder.",
            rich_help_panel="Result",
        ),
    ] = None,
    leaderboard: o.Leaderboard = Path("results"),
) -> None:
    """Check a run's saved examples again: hashes, ball, box, predictions and verdicts of every row.

    Say model, weights and defenses as for rbl evaluate. Exit status 0 where all is confirmed, 2 where not.
    """
    from ..data_request import DataRequest
    from ..defense import InferenceDefense
    from ..errors import RecordError, UserError
    from ..prepare import defense_images, make_defenses, pick_device
    from ..records.run import read_run
    from ..reverify import reverify

    if batch_size < 1:
        raise UserError(f"--batch-size must be >= 1, got {batch_size}")
    path = _find_run(run, leaderboard)
    recorded = read_run(path)
    saved = _find_examples(recorded, examples, leaderboard)
    defenses = make_defenses(defense or [], defense_option or [])
    device = pick_device(device)
    name = recorded.specification.dataset.name
    request = DataRequest(
        dataset or name,
        recorded.specification.dataset.split,
        data_dir,
        download,
        image_size,
        workers,
        recorded.specification.dataset.class_names,
    )
    loaded = _load_model(
        recorded,
        model,
        request,
        weights=o.with_prefix(weights, weights_prefix),
        binary=binary,
        defenses=defenses,
        epochs=epochs,
        device=device,
        normalize=o.normalization(mean, std),
    )
    standing = [d for d in defenses if isinstance(d, InferenceDefense)]
    learn_from = defense_images(request, defenses)
    found = reverify(
        recorded,
        saved,
        loaded.module,
        defenses=standing,
        learn_from=learn_from,
        device=device,
        batch_size=batch_size,
    )
    _show(path.stem, saved, found)
    if found.faults:
        count = len(found.faults)
        more = "" if count == 1 else f" (and {count - 1} more, above)"
        raise RecordError(f"{path.stem} is refuted: {found.faults[0]}{more}")


def _find_run(run: str, leaderboard: Path) -> Path:
    """The file of a run by its path, or by its id in the leaderboard's folder."""
    from ..errors import UserError, unknown_name

    path = Path(run).expanduser()
    if path.is_file():
        return path
    if path.suffix == ".parquet":
        raise UserError(f"RUN: no such run file {run!r}; give its path, or its id with --leaderboard DIR")
    folder = leaderboard.expanduser() / "runs"
    # A run's id may end in what looks like a suffix (eps 0.3), so nothing is replaced, only added.
    named = folder / f"{run}.parquet"
    if named.is_file():
        return named
    known = [file.stem for file in folder.glob("*.parquet")]
    if not known:
        raise UserError(f"RUN: no runs in {str(folder)!r}, so none called {run!r}; give --leaderboard DIR or a path")
    if difflib.get_close_matches(run, known, n=1, cutoff=0.5):
        raise unknown_name("RUN", run, known)
    raise UserError(
        f"RUN: no run {run!r} among the {len(known)} in {str(folder)!r}; rbl leaderboard show --format csv lists them"
    )


def _find_examples(run: Run, given: Path | None, leaderboard: Path) -> Path:
    from ..errors import UserError
    from ..files import sha256_file

    if given is not None:
        if not given.expanduser().is_file():
            raise UserError(f"--examples: no such file {str(given)!r}; give what --save-examples wrote")
        return given.expanduser()
    record = run.specification.examples
    if record is None:
        raise UserError("--examples: the run names no file of examples; give one, or evaluate with --save-examples")
    assert run.path is not None
    folders = list(dict.fromkeys([run.path.parent, run.path.parent.parent, leaderboard.expanduser(), Path()]))
    # The record came from a file: only the name in it is taken, never a folder.
    there = [path for folder in folders if (path := folder / Path(record.file).name).is_file()]
    if not there:
        looked = ", ".join(repr(str(folder)) for folder in folders)
        raise UserError(f"--examples: {record.file} is not in {looked}; say where it is")
    return next((path for path in there if sha256_file(path) == record.sha256), there[0])


def _load_model(
    run: Run,
    model: str,
    request: Any,
    *,
    weights: str | None,
    binary: bool,
    defenses: list[Defense],
    epochs: int | None,
    device: str,
    normalize: Normalization | None = None,
) -> LoadedModel:
    """The network; the data set is read only where it is needed, to find or make a trained one."""
    from ..defense import TrainingDefense
    from ..models import load_model
    from ..models.build import find_source
    from ..prepare import prepare_model
    from .terminal import note, training_bar

    record = run.specification.dataset
    trains = any(isinstance(d, TrainingDefense) for d in defenses)
    if not trains and (weights is not None or find_source(model).is_factory):
        return load_model(
            model,
            n_classes=record.classes,
            shape=_image_shape(run),
            weights=weights,
            normalize=normalize,
            binary=binary,
        )
    recipe = run.specification.model.recipe or {}
    known = recipe.get("epochs")
    data = request.load()
    with training_bar(f"training {model}") as progress:
        return prepare_model(
            model,
            request,
            data,
            weights=weights,
            binary=binary,
            defenses=defenses,
            recipe={"epochs": epochs if epochs is not None else known if isinstance(known, int) else None},
            device=device,
            progress=progress,
            note=note,
            normalize=normalize,
        )


def _image_shape(run: Run) -> tuple[int, int, int]:
    from ..errors import RecordError

    shape = run.specification.dataset.shape
    if len(shape) != 3:
        raise RecordError(f"{run.path}: expected images (C, H, W), the run says {shape}")
    return shape[0], shape[1], shape[2]


def _show(name: str, examples: Path, found: Reverification) -> None:
    from rich.console import Console

    out = Console(emoji=False, highlight=False, soft_wrap=True)
    out.print(f"{name}, images in {examples}", markup=False, style="bold")
    if found.randomized:
        out.print(
            f"  a randomised network: verdicts over {found.draws} fresh draws; agreement is reported, not demanded"
        )
    word = "agree" if found.randomized else "confirmed"
    for label, count, total in (
        ("rows with images", found.checked, found.rows),
        ("clean predictions", found.clean, found.checked),
        ("adversarial predictions", found.adversarial, found.checked),
        ("verdicts", found.success, found.checked),
        ("successes", found.confirmed, found.successes),
    ):
        tail = "" if label == "rows with images" else f" {word}"
        out.print(f"  {label:<24}{count:>8,} of {total:,}{tail}")
    if found.near_ties:
        out.print(f"  {'ties within rounding':<24}{found.near_ties:>8,} (counted apart, no faults)")
    for fault in found.faults:
        out.print(f"  refuted: {fault}", markup=False, style="red")
    if not found.faults:
        out.print(f"  {'nothing refuted' if found.randomized else 'all confirmed'}", style="green")
