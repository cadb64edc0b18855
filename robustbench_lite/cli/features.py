"""`rbl features`: data sets of robust or of non-robust features, what is learned from them, and their measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o

app = typer.Typer(
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
REPORT_EPILOG = """\
[bold]Examples[/]

rbl features report --model small-cnn --dataset digits --option steps=50

rbl features report --model small-cnn --dataset mnist --data-dir data --samples 10000 --option eps=3 \
  --option robust.steps=200 --out report.parquet --figure images.png
"""
USEFULNESS_EPILOG = """\
[bold]Examples[/]

rbl features usefulness --model small-cnn --dataset digits --eps 0.5 --out usefulness.parquet --figure usefulness.png

rbl features usefulness --model small-cnn --dataset mnist --data-dir data --classes 3,7 --eps 1.5 \
  --defense adversarial-training --defense-option norm=l2 --defense-option eps=2
"""
SYNTHETIC_EPILOG = """\
[bold]Examples[/]

rbl features synthetic

rbl features synthetic --features 10000 --correlation 0.03 --out synthetic.csv --json
"""

Kind = Annotated[
    str,
    typer.Option(help="robust, nonrobust, random, shifted, errors, or FILE.py:NAME.", rich_help_panel="Construction"),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Any option of the construction, KEY=VALUE.", rich_help_panel="Construction"),
]
TableOut = Annotated[
    Path | None, typer.Option(help="PATH.csv or .parquet that receives the table.", rich_help_panel="Result")
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
    defense: o.Defenses = None,
    defense_option: o.DefenseOptions = None,
    dataset: o.DatasetName = "digits",
    samples: o.Samples = None,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
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
    from ..defense import InferenceDefense
    from ..errors import UserError
    from ..features import build as make
    from ..features import make_construction
    from ..prepare import DataRequest, make_defenses, pick_device, prepare_model
    from .terminal import count_bar, gentle_interrupt, note, print_json, training_bar

    settings = o.merged("--option", option, {"eps": eps, "steps": steps, "step_size": step_size})
    construction = make_construction(kind, settings)
    o.check_model_name(model)
    defenses = make_defenses(defense or [], defense_option or [])
    standing = [d.name for d in defenses if isinstance(d, InferenceDefense)]
    if standing:
        raise UserError(f"--defense: {standing[0]} trains nothing; a network's own features are what is used here")
    _check_folder(out)
    device = pick_device(device)
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers)
    test, train = request.load("test"), request.load("train")
    construction.resolve(train)
    index = balanced_subset(train.labels, len(train) if samples is None else samples)
    with training_bar(f"training {model}") as bar:
        network = prepare_model(
            model,
            request,
            test,
            weights=weights,
            defenses=defenses,
            recipe={} if epochs is None else {"epochs": epochs},
            device=device,
            progress=bar,
            note=note,
        )
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
        dataset=f"parquet:{path}",
        epochs=epochs,
        lr=lr,
        train_batch_size=train_batch_size,
        train_option=train_option,
        seed=seed,
        device=device,
        as_json=as_json,
    )


@app.command(epilog=REPORT_EPILOG)
def report(
    model: o.Model = "small-cnn",
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
    workers: o.Workers = 2,
    seeds: Annotated[int, typer.Option(help="Fresh networks for each data set.", rich_help_panel="Training")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the fresh networks; default 20.", rich_help_panel="Training")
    ] = None,
    lr: Annotated[
        str | None, typer.Option(help="Highest learning rate; default 0.001.", rich_help_panel="Training")
    ] = None,
    train_batch_size: TrainBatchSize = None,
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
    from ..features.report import Bars, Study, constructions_of
    from ..features.report import report as make
    from ..options import parse_pairs
    from ..prepare import DataRequest, pick_device
    from ..recipe import recipe_for
    from .features_show import check_outputs, show_report
    from .terminal import count_bar, gentle_interrupt, training_bar, warn

    check_outputs(out, figure)
    o.check_model_name(model)
    constructions = constructions_of(
        [name for name in (part.strip() for part in kinds.split(",")) if name],
        parse_pairs("--option", option or []),
    )
    named = {"epochs": epochs, "lr": lr, "batch_size": train_batch_size}
    recipe = o.merged("--train-option", train_option, named)
    recipe_for([], recipe, argument="--train-option")
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers)
    device = pick_device(device)
    grey = request.load("test").shape[0] == 1
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
    )
    with gentle_interrupt() as stop:
        found = make(study, bars=Bars(training_bar, count_bar), stop=stop, note=warn)
    show_report(found, request.load("train"), out=out, figure=figure, as_json=as_json)


def _robust(defense: list[str] | None, options: list[str] | None, *, grey: bool) -> Any:
    """The defenses that the robust network is trained with; by default the paper's, for the images' colours."""
    from ..defense import TrainingDefense
    from ..errors import UserError
    from ..features.targeted import COLOUR_EPS, GREY_EPS
    from ..prepare import make_defenses

    names, settings = list(defense or []), list(options or [])
    if not names:
        names = ["adversarial-training"]
        given = {pair.partition("=")[0].rpartition(".")[2] for pair in settings}
        own = {"norm": "l2", "eps": GREY_EPS if grey else COLOUR_EPS}
        settings += [f"{key}={value}" for key, value in own.items() if key not in given]
    made = make_defenses(names, settings)
    wrong = [d.name for d in made if not isinstance(d, TrainingDefense)]
    if wrong:
        raise UserError(f"--defense: {wrong[0]} trains nothing; give one that trains a robust network")
    return tuple(made)


@app.command(epilog=USEFULNESS_EPILOG)
def usefulness(
    model: o.Model = "small-cnn",
    weights: o.Weights = None,
    defense: o.Defenses = None,
    defense_option: o.DefenseOptions = None,
    classes: Annotated[
        str | None,
        typer.Option(help="A,B: tell these two apart; default each feature's own class against all others."),
    ] = None,
    attack: Annotated[
        str, typer.Option(help="What makes y f(x) small: NAME or FILE.py:NAME.", rich_help_panel="Attack")
    ] = "pgd",
    norm: Annotated[str, typer.Option(help="linf, l2, l1 or l0.", rich_help_panel="Attack")] = "l2",
    eps: o.Eps = None,
    steps: o.Steps = None,
    attack_option: o.AttackOptions = None,
    dataset: o.DatasetName = "digits",
    samples: Annotated[
        int | None, typer.Option(help="Test images, class-balanced; default all.", rich_help_panel="Data")
    ] = None,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    workers: o.Workers = 2,
    epochs: o.Epochs = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    out: TableOut = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png: gamma over rho, a point a feature.", rich_help_panel="Result")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """How useful each feature of a network is (rho), and what of that an attack leaves (gamma)."""
    from ..data import balanced_subset
    from ..features import Workshop
    from ..features.usefulness import usefulness as measure
    from ..halves import part_of
    from ..network import frozen, placed
    from ..perturbation import make_attack
    from ..plan import make_threat
    from ..prepare import DataRequest, make_defenses, pick_device, prepare_model
    from .features_show import check_outputs, parse_classes, show_usefulness
    from .terminal import count_bar, note, training_bar

    check_outputs(out, figure)
    o.check_model_name(model)
    pair = None if classes is None else parse_classes(classes)
    threat = make_threat(norm, eps)
    options = o.merged("--attack-option", attack_option, {"steps": steps})
    make_attack(attack, options, threat)
    defenses = make_defenses(defense or [], defense_option or [])
    device = pick_device(device)
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers)
    test, train = request.load("test"), request.load("train")
    if samples is not None:
        test = part_of(test, balanced_subset(test.labels, samples), split=f"{test.split}, {samples} of it")
    with training_bar(f"training {model}") as bar:
        network = prepare_model(
            model,
            request,
            test,
            weights=weights,
            defenses=defenses,
            recipe={} if epochs is None else {"epochs": epochs},
            device=device,
            progress=bar,
            note=note,
        )
    with placed(network.module, device) as module, frozen(module):
        workshop = Workshop(train, module, seed=seed, device=device)
        with count_bar("attacking features", workshop.n_features) as progress:
            frame = measure(
                workshop,
                train,
                test,
                attack=attack,
                norm=threat.norm,
                eps=threat.eps,
                attack_options=options,
                pair=pair,
                batch_size=batch_size,
                progress=progress,
            )
    said = {
        "model": network.name,
        "model_sha256": network.sha256,
        "defense": " + ".join(d.name for d in defenses) or "none",
        "dataset": test.name,
        "images": len(test),
        "classes": classes or "each against all others",
        "attack": attack,
        "attack_options": {key: str(value) for key, value in options.items()},
        "norm": threat.norm,
        "eps": threat.eps,
        "seed": seed,
    }
    show_usefulness(frame, said, out=out, figure=figure, as_json=as_json)


@app.command(epilog=SYNTHETIC_EPILOG)
def synthetic(
    features: Annotated[int, typer.Option(help="How many weak features.")] = 60_000,
    correlation: Annotated[float, typer.Option(help="Of each weak feature with the label.")] = 0.01,
    p: Annotated[float, typer.Option(help="How often the strong feature is right.")] = 0.95,
    eps: Annotated[str | None, typer.Option(help="Of the linf adversary; default twice a weak feature's mean.")] = None,
    samples: Annotated[int, typer.Option(help="Drawn to learn from, and as many to test on.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", rich_help_panel="Computing")] = 0,
    out: TableOut = None,
    as_json: o.AsJson = False,
) -> None:
    """Many features of 1 % correlation whose mean predicts well, one of 95 %, and what training makes of them."""
    from ..features.synthetic import Synthetic
    from ..features.synthetic import synthetic as measure
    from ..options import parse_number
    from .features_show import check_outputs, show_synthetic
    from .terminal import count_bar

    check_outputs(out, None)
    case = Synthetic(
        features=features,
        correlation=correlation,
        p=p,
        eps=None if eps is None else parse_number("--eps", eps),
        samples=samples,
        seed=seed,
    )
    with count_bar("drawing samples", 2 * samples) as progress:
        frame, notes = measure(case, progress=progress)
    show_synthetic(case, frame, notes, out=out, as_json=as_json)
