"""`rbl features usefulness` and `synthetic`: the definitions, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .features_show import TableOut

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


def usefulness(
    model: o.Model = "small-cnn",
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
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
    class_names: o.ClassNames = None,
    workers: o.Workers = 2,
    epochs: o.Epochs = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    out: TableOut = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png: gamma over rho, a point a feature.", rich_help_panel="Result")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="--out of an earlier run, PATH.parquet, for a panel of its own.", rich_help_panel="Result"),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """How useful each feature of a network is (rho), and what of that an attack leaves (gamma)."""
    from ..data import balanced_subset
    from ..data_request import DataRequest
    from ..features import Workshop
    from ..features.usefulness import usefulness as measure
    from ..halves import part_of
    from ..network import frozen, placed
    from ..perturbation import make_attack
    from ..plan import make_threat
    from ..prepare import pick_device
    from .features_network import network_of, training_defenses
    from .features_show import check_outputs, parse_classes, read_beside, show_usefulness
    from .reading import read_data
    from .terminal import count_bar

    check_outputs(out, figure)
    panels = read_beside(beside or [], figure)
    o.check_model_name(model)
    normalize = o.normalization(mean, std)
    pair = None if classes is None else parse_classes(classes)
    threat = make_threat(norm, eps)
    options = o.merged("--attack-option", attack_option, {"steps": steps})
    make_attack(attack, options, threat)
    defenses = training_defenses(defense, defense_option)
    device = pick_device(device)
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers, o.class_list(class_names))
    request, (test, train) = read_data(request, [(model, weights)], "test", "train")
    if samples is not None:
        test = part_of(test, balanced_subset(test.labels, samples), split=f"{test.split}, {samples} of it")
    trained: dict[str, Any] = {"defenses": defenses, "epochs": epochs, "normalize": normalize}
    network = network_of(model, request, test, weights=weights, device=device, **trained)
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
    show_usefulness(frame, said, panels=panels, out=out, figure=figure, as_json=as_json)


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
