"""`rbl transfer`: adversarial images of each network judged on every other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from ..data import Dataset
    from ..data_request import DataRequest
    from ..models import LoadedModel, Normalization
    from ..transfer import TransferMatrix

EPILOG = """\
[bold]Examples[/]

rbl transfer --models small-cnn,mlp,resnet18 --attack pgd --figure transfer.png

rbl transfer --models small-cnn,mlp --halves --eps 0.1 --samples 200 --out transfer.parquet

rbl transfer --models net.py:make=a.pth,net.py:make=b.pth --attack mi-fgsm --dataset npz:images.npz --json
"""


def transfer(
    models: Annotated[
        str,
        typer.Option(help="MODEL or MODEL=WEIGHTS, with commas between them, as for rbl evaluate.", metavar="A,B,..."),
    ],
    halves: Annotated[
        bool,
        typer.Option("--halves", help="Train each model twice, A/1 and A/2, on disjoint halves of the training set."),
    ] = False,
    mean: o.Mean = None,
    std: o.Std = None,
    attack: Annotated[
        str, typer.Option(help="NAME or FILE.py:NAME of fixed eps; see rbl plugins.", rich_help_panel="Attack")
    ] = "pgd",
    norm: o.Norm = None,
    eps: o.Eps = None,
    steps: o.Steps = None,
    attack_option: o.AttackOptions = None,
    dataset: o.DatasetName = "digits",
    samples: o.Samples = None,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    class_names: o.ClassNames = None,
    workers: o.Workers = 2,
    epochs: o.Epochs = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    deterministic: o.Deterministic = False,
    out: Annotated[
        Path | None, typer.Option(help="PATH.parquet: a row for each pair and image.", rich_help_panel="Result")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png: the matrix as a picture.", rich_help_panel="Result")
    ] = None,
    binary: o.Binary = False,
    as_json: o.AsJson = False,
) -> None:
    """Who fools whom: each model's adversarial images judged on every other, and noise beside them."""
    from ..data import balanced_subset
    from ..data_request import DataRequest
    from ..plan import default_norm, make_threat
    from ..prepare import fit_images, pick_device
    from ..surrogate import Surrogate
    from ..transfer import run_transfer
    from ..transfer_plan import TransferPlan, carried
    from .reading import read_data
    from .terminal import count_bar, gentle_interrupt, print_json, warn

    threat = make_threat(norm or default_norm(attack), eps)
    options = o.merged("--attack-option", attack_option, {"steps": steps})
    promised = carried(attack, options, threat, Surrogate.promised(""))
    normalize = o.normalization(mean, std)
    named, device = _named(models, halves=halves), pick_device(device)
    _check_paths(out, figure)
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers, o.class_list(class_names))
    with o.naming("--models"):
        request, (data,) = read_data(request, [(spec, weights or None) for spec, weights, _ in named.values()])
    settings: dict[str, Any] = {
        "data": data,
        "index": balanced_subset(data.labels, len(data) if samples is None else samples),
        "attack": attack,
        "threat": threat,
        "attack_options": options,
        "seed": seed,
        "batch_size": batch_size,
        "device": device,
        "deterministic": deterministic,
        "fit": fit_images(request, promised, threat),
    }
    given: dict[str, Any] = {"epochs": epochs, "device": device, "normalize": normalize}
    with o.naming("--models"):
        networks = {
            name: _prepared(spec, weights or None, half, request, data, binary=binary, **given)
            for name, (spec, weights, half) in named.items()
        }
    plan = TransferPlan(**settings, models=networks)
    label = f"{promised.inner.name} on {len(networks)} models"
    with gentle_interrupt() as stop, count_bar(label, len(plan.index) * len(networks)) as progress:
        found = run_transfer(plan, progress=progress, stop=stop, warn=warn)
    if out is not None:
        found.save(out)
    if figure is not None:
        from ..transfer_figure import save_matrix

        save_matrix(figure, found)
    written = {"out": out, "figure": figure}
    if as_json:
        print_json({**found.summary(), **{key: None if path is None else str(path) for key, path in written.items()}})
        return
    _show(found, written)


def _named(models: str, *, halves: bool) -> dict[str, tuple[str, str, int]]:
    """Every network's name in the matrix with its model, its weights and its half (0: none)."""
    from ..errors import UserError
    from ..models.build import shown

    named: dict[str, tuple[str, str, int]] = {}
    for given in (part.strip() for part in models.split(",")):
        spec, _, weights = given.partition("=")
        o.check_model_name(spec, "--models")
        name = shown(spec) + (f"={Path(weights).name}" if weights else "")
        if halves and weights:
            raise UserError(f"--halves: {name} is trained already; leave its weights out, or --halves")
        for half in (1, 2) if halves else (0,):
            one = f"{name}/{half}" if half else name
            if one in named:
                raise UserError(f"--models: {name} is given twice")
            named[one] = (spec, weights, half)
    if len(named) < 2:
        raise UserError(f"--models: expected two or more with commas between them, got {models!r}; or add --halves")
    return named


def _check_paths(out: Path | None, figure: Path | None) -> None:
    """What would fail at the end of a long run fails before it."""
    from ..files import check_output

    if out is not None:
        check_output(out, argument="--out", suffix=".parquet")
    if figure is not None:
        check_output(figure, argument="--figure", suffix=".png")


def _prepared(
    spec: str,
    weights: str | None,
    half: int,
    request: DataRequest,
    data: Dataset,
    *,
    epochs: int | None,
    device: str,
    normalize: Normalization | None,
    binary: bool,
) -> LoadedModel:
    """One network; of a half, with an order and initial weights of its own too, so that it shares nothing."""
    from ..halves import HalfRequest
    from ..prepare import prepare_model
    from .terminal import note, training_bar

    recipe = {"epochs": epochs, "seed": max(0, half - 1)}
    if half:
        request = HalfRequest(**vars(request), half=half)
    label = f"training {spec}{f'/{half}' if half else ''}"
    with training_bar(label) as bar:
        return prepare_model(
            spec,
            request,
            data,
            weights=weights,
            binary=binary,
            recipe=recipe,
            retrain=half > 0,
            device=device,
            progress=bar,
            note=note,
            normalize=normalize,
        )


def _show(found: TransferMatrix, written: Mapping[str, Path | None]) -> None:
    from rich.console import Console

    from ..records.specification import threat_text

    said = found.summary()
    options = "".join(f", {key}={value}" for key, value in said["attack_options"].items())
    out = Console(emoji=False, highlight=False, soft_wrap=True)
    images = f"{said['n']:,} image{'s' if said['n'] > 1 else ''}"
    threat = threat_text(said["norm"], said["eps"])
    out.print(f"{said['dataset']}, {images}, attack {said['attack']}{options}, {threat}", markup=False, style="bold")
    Console(emoji=False, highlight=False).print(_table(found))
    for key, path in written.items():
        if path is not None:
            out.print(f"  {key:<8} {path}", markup=False)


def _table(found: TransferMatrix) -> Table:
    """Rows: the network attacked; columns: the network judged."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    matrix = found.summary()["matrix"]
    caption = "% fooled of what both get right, 95 % interval"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, caption=caption, pad_edge=False)
    table.add_column("attacked \\ judged", overflow="fold")
    for name, accuracy in found.clean_accuracy.items():
        table.add_column(Text(f"{name}\nclean {100 * accuracy:.1f}"), justify="right", overflow="fold")
    rows = list(matrix.items())
    for number, (surrogate, row) in enumerate(rows):
        cells = [_cell(cell, itself=surrogate == target) for target, cell in row.items()]
        table.add_row(Text(surrogate), *cells, end_section=number == len(rows) - 2)
    return table


def _cell(cell: dict[str, Any], *, itself: bool) -> Any:
    from rich.text import Text

    if cell["share"] is None:
        return Text("-")
    shown = Text(f"{100 * cell['share']:.1f}", style="bold" if itself else "")
    return shown.append(f"\n[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]", style="dim")
