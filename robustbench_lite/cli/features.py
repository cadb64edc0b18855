"""`rbl features`: data sets of robust or of non-robust features, what is learned from them, and their measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import features_measure, features_report
from . import options as o
from .app import App

app = App(
    no_args_is_help=True,
    help="Robust and non-robust features: build data sets of them, learn from these, measure usefulness.",
    rich_markup_mode="rich",
    epilog="[bold]Example[/]  rbl features report --model small-cnn --dataset digits",
)

BUILD_EPILOG = """\
[bold]Examples[/]

rbl features build --kind random --model small-cnn --dataset mnist --data-dir data --eps 3 --out d-rand

rbl features build --kind robust --model small-cnn --defense adversarial-training --defense-option norm=l2 \
  --defense-option eps=2 --dataset mnist --data-dir data --samples 10000 --steps 200 --out d-robust

rbl train --model small-cnn --dataset parquet:d-rand --lr 0.001 --train-option optimizer=adamw --out net.safetensors

A build that was killed goes on where it was when the same command is given again.
"""
TRAIN_EPILOG = """\
[bold]Example[/]

rbl features train d-rand --model small-cnn --lr 0.001 --train-option optimizer=adamw --out net.safetensors
"""

Kind = Annotated[
    str,
    typer.Option(help="robust, nonrobust, random, shifted, errors, or FILE.py:NAME.", rich_help_panel="Construction"),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Any option of the construction, KEY=VALUE.", rich_help_panel="Construction"),
]
TrainOptions = Annotated[
    list[str] | None,
    typer.Option(help="Any other part of the recipe, KEY=VALUE.", rich_help_panel="Training"),
]
Lr = Annotated[str | None, typer.Option(help="Highest learning rate.", rich_help_panel="Training")]
TrainBatchSize = Annotated[
    str | None, typer.Option("--train-batch-size", help="Images a step of training.", rich_help_panel="Training")
]


@app.command(epilog=BUILD_EPILOG)
def build(
    kind: Kind,
    out: Annotated[Path, typer.Option(help="New folder that receives the data set.", rich_help_panel="Result")],
    eps: Annotated[
        str | None, typer.Option(help="Of the attack (random, shifted).", rich_help_panel="Construction")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Of the construction.", rich_help_panel="Construction")] = None,
    step_size: Annotated[
        str | None, typer.Option(help="Length of a step, in pixels of [0, 1].", rich_help_panel="Construction")
    ] = None,
    option: Options = None,
    model: o.Model = "resnet18",
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    defense: o.Defenses = None,
    defense_option: o.DefenseOptions = None,
    dataset: o.DatasetName = "digits",
    samples: o.Samples = None,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    class_names: o.ClassNames = None,
    workers: o.Workers = 2,
    epochs: o.Epochs = None,
    seed: Annotated[int, typer.Option(help="Of the images' random numbers.", rich_help_panel="Computing")] = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    as_json: o.AsJson = False,
) -> None:
    """Make a data set of a training set: images with one kind of feature alone, or moved to other classes.

    OUT holds what is learned (train) and the source's real test images (test), as parquet:OUT reads them.
    """
    from ..data import balanced_subset
    from ..data_request import DataRequest
    from ..features import build as make
    from ..features import make_construction
    from ..prepare import pick_device
    from .features_network import network_of, training_defenses
    from .reading import read_data
    from .terminal import count_bar, gentle_interrupt, print_json

    settings = o.merged("--option", option, {"eps": eps, "steps": steps, "step_size": step_size})
    construction = make_construction(kind, settings)
    o.check_model_name(model)
    normalize = o.normalization(mean, std)
    defenses = training_defenses(defense, defense_option)
    _check_folder(out)
    device = pick_device(device)
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers, o.class_list(class_names))
    request, (test, train) = read_data(request, [(model, weights)], "test", "train")
    construction.resolve(train)
    index = balanced_subset(train.labels, len(train) if samples is None else samples)
    trained: dict[str, Any] = {"defenses": defenses, "epochs": epochs, "normalize": normalize}
    network = network_of(model, request, test, weights=weights, device=device, **trained)
    with gentle_interrupt() as stop, count_bar(f"building {construction.symbol}", len(index)) as progress:
        made = make(
            construction,
            network,
            train,
            out=out,
            index=index,
            test=test,
            seed=seed,
            batch_size=batch_size,
            device=device,
            progress=progress,
            stop=stop,
        )
    row = _built(made.folder)
    if as_json:
        print_json({**row, "known": made.known, "test_images": len(test)})
        return
    state = ", there already" if made.known else ""
    typer.echo(f"{out}: {construction.symbol}, {row['images']:,} images of {train.name}{state}")
    if row["reached"] is not None:
        typer.echo(f"  taken for their label by {network.name}: {100 * row['reached']:.1f} %")
    typer.echo(f"  l2 distance from the image: mean {row['distance']:.3g}")
    if row["feature_distance"] is not None:
        share = 100 * row["feature_distance"] / row["start_feature_distance"]
        typer.echo(f"  distance in features: mean {row['feature_distance']:.3g}, {share:.1f} % of that at the start")
    typer.echo(f"  cost: {row['forwards']:.1f} forward and {row['backwards']:.1f} backward passes an image")
    typer.echo(f"  learn from it: rbl features train {out} --out net.safetensors")


def _check_folder(out: Path) -> None:
    """What would fail after a training fails before it."""
    from ..errors import UserError
    from ..features.storage import TEST, TRAIN

    out = out.expanduser()
    if not out.parent.is_dir():
        raise UserError(f"--out: no such folder {str(out.parent)!r}; make it first")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder, got the file {str(out)!r}")
    if out.is_dir() and any(path.name not in (TRAIN, TEST) for path in out.iterdir()):
        raise UserError(f"--out: {str(out)!r} is there and holds something else; give the name of a new folder")


def _built(folder: Path) -> dict[str, Any]:
    """The numbers of a constructed data set: means over its images."""
    import pyarrow.parquet as pq

    from ..features import provenance
    from ..features.storage import TRAIN

    table = pq.read_table(folder / TRAIN)
    said = provenance(folder)

    def mean(name: str) -> float | None:
        return float(table[name].to_numpy().mean()) if name in table.column_names else None

    names = ("reached", "distance", "start_feature_distance", "feature_distance", "forwards", "backwards")
    return {
        "folder": str(folder),
        "construction": said["construction"],
        "options": said["options"],
        "images": table.num_rows,
        "model_sha256": said["model"]["sha256"],
        "fingerprint": said["dataset"]["fingerprint"],
        **{name: mean(name) for name in names},
    }


@app.command(epilog=TRAIN_EPILOG)
def train(
    path: Annotated[Path, typer.Argument(help="Folder that rbl features build wrote.", metavar="PATH")],
    out: Annotated[Path, typer.Option(help="PATH.safetensors that receives the network.", rich_help_panel="Result")],
    model: o.Model = "small-cnn",
    mean: o.Mean = None,
    std: o.Std = None,
    epochs: o.Epochs = None,
    lr: Lr = None,
    train_batch_size: TrainBatchSize = None,
    train_option: TrainOptions = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initial weights and order; default 0.", rich_help_panel="Training")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="PATH.csv or .parquet that receives a row an epoch.", rich_help_panel="Result")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png that receives the curves.", rich_help_panel="Result")
    ] = None,
    device: o.Device = "auto",
    as_json: o.AsJson = False,
) -> None:
    """Train a fresh network on a constructed data set and test it on real, rightly labelled images.

    It is rbl train --dataset parquet:PATH; the test accuracy is that on the source's own test images.
    """
    from ..features import provenance
    from .terminal import note
    from .train import train as plain

    said = provenance(path)
    note(f"{said['symbol']} of {said['dataset']['name']}, made with {said['model']['name']}; tested on real images")
    plain(
        out=out,
        history=history,
        figure=figure,
        model=model,
        mean=mean,
        std=std,
        dataset=f"parquet:{path}",
        epochs=epochs,
        lr=lr,
        train_batch_size=train_batch_size,
        train_option=train_option,
        seed=seed,
        device=device,
        as_json=as_json,
    )


app.command(epilog=features_report.EPILOG)(features_report.report)
app.command(epilog=features_measure.USEFULNESS_EPILOG)(features_measure.usefulness)
app.command(epilog=features_measure.SYNTHETIC_EPILOG)(features_measure.synthetic)
