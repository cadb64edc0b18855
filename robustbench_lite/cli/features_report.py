"""`rbl features report`: what is learned from each constructed data set, with controls, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .features_show import TableOut

EPILOG = """\
[bold]Examples[/]

rbl features report --model small-cnn --dataset digits --option steps=50

rbl features report --model small-cnn --dataset mnist --data-dir data --samples 10000 --option eps=3 \
  --option robust.steps=200 --out report.parquet --figure images.png
"""


def report(
    model: o.Model = "small-cnn",
    mean: o.Mean = None,
    std: o.Std = None,
    kinds: Annotated[
        str, typer.Option(help="Constructions, with commas between them.", rich_help_panel="Construction")
    ] = "robust,nonrobust,random,shifted,errors",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for each construction that has it, or KIND.KEY=VALUE.", rich_help_panel="Construction"
        ),
    ] = None,
    defense: Annotated[
        list[str] | None,
        typer.Option(help="What the robust network is trained with.", rich_help_panel="Construction"),
    ] = None,
    defense_option: o.DefenseOptions = None,
    early_samples: Annotated[
        int | None,
        typer.Option(
            help="Images that the early network sees once; default a twentieth, at least 1,000.",
            rich_help_panel="Construction",
        ),
    ] = None,
    source_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of the standard and the robust network.", rich_help_panel="Construction"),
    ] = None,
    dataset: o.DatasetName = "digits",
    samples: Annotated[
        int | None, typer.Option(help="Training images that are made into others; default all.", rich_help_panel="Data")
    ] = None,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    class_names: o.ClassNames = None,
    workers: o.Workers = 2,
    seeds: Annotated[int, typer.Option(help="Fresh networks for each data set.", rich_help_panel="Training")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the fresh networks; default 20.", rich_help_panel="Training")
    ] = None,
    lr: Annotated[
        str | None, typer.Option(help="Highest learning rate; default 0.001.", rich_help_panel="Training")
    ] = None,
    train_batch_size: Annotated[
        str | None, typer.Option("--train-batch-size", help="Images a step of training.", rich_help_panel="Training")
    ] = None,
    train_option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE; default optimizer=adamw, weight_decay=0.01, augment=none.", rich_help_panel="Training"
        ),
    ] = None,
    attack: Annotated[
        str, typer.Option(help="For robust accuracy: NAME or FILE.py:NAME.", rich_help_panel="Attack")
    ] = "pgd",
    norm: Annotated[str, typer.Option(help="Of robust accuracy.", rich_help_panel="Attack")] = "l2",
    eps: Annotated[
        str | None, typer.Option(help="Of robust accuracy; default 0.25, for grey images 1.", rich_help_panel="Attack")
    ] = None,
    steps: o.Steps = None,
    robust_samples: Annotated[
        int, typer.Option(help="Test images for robust accuracy.", rich_help_panel="Attack")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", rich_help_panel="Computing")] = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    out: TableOut = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png: images beside what was made of them.", rich_help_panel="Result")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """What fresh networks learn from robust and from non-robust features alone, with controls, in one table.

    Trained and built parts stay in the cache: a report that was killed goes on when the same command is given again.
    """
    from ..data_request import DataRequest
    from ..features.report import Bars
    from ..features.report import report as make
    from ..features.study import Study, constructions_of
    from ..options import parse_pairs
    from ..prepare import pick_device
    from ..recipe import recipe_for
    from .features_show import check_outputs, show_report
    from .reading import read_data
    from .terminal import count_bar, gentle_interrupt, training_bar, warn

    check_outputs(out, figure)
    o.check_model_name(model)
    constructions = constructions_of(
        [name for name in (part.strip() for part in kinds.split(",")) if name],
        parse_pairs("--option", option or []),
    )
    normalize = o.normalization(mean, std)
    named = {"epochs": epochs, "lr": lr, "batch_size": train_batch_size}
    recipe = o.merged("--train-option", train_option, named)
    recipe_for([], recipe, argument="--train-option")
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers, o.class_list(class_names))
    device = pick_device(device)
    request, (test, _) = read_data(request, (), "test", "train")
    grey = test.shape[0] == 1
    study = Study(
        model=model,
        request=request,
        constructions=constructions,
        defenses=_robust(defense, defense_option, grey=grey),
        samples=samples,
        early_samples=early_samples,
        source_epochs=source_epochs,
        seeds=seeds,
        seed=seed,
        recipe=recipe,
        attack=attack,
        norm=norm,
        eps=eps if eps is not None or norm != "l2" else 1.0 if grey else 0.25,
        attack_options={} if steps is None else {"steps": steps},
        robust_samples=robust_samples,
        batch_size=batch_size,
        device=device,
        normalize=normalize,
    )
    with gentle_interrupt() as stop:
        found = make(study, bars=Bars(training_bar, count_bar), stop=stop, note=warn)
    show_report(found, request.load("train"), out=out, figure=figure, as_json=as_json)


def _robust(defense: list[str] | None, options: list[str] | None, *, grey: bool) -> Any:
    """The defenses that the robust network is trained with; by default the paper's, for the images' colours."""
    from ..features.targeted import COLOUR_EPS, GREY_EPS
    from .features_network import training_defenses

    names, settings = list(defense or []), list(options or [])
    if not names:
        names = ["adversarial-training"]
        given = {pair.partition("=")[0].rpartition(".")[2] for pair in settings}
        own = {"norm": "l2", "eps": GREY_EPS if grey else COLOUR_EPS}
        settings += [f"{key}={value}" for key, value in own.items() if key not in given]
    return training_defenses(names, settings, "give one that trains a robust network")
