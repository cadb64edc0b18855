"""`rbl train`: a network for a data set, with or without a train-time defense, to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..data_request import DataRequest

EPILOG = """\
[bold]Examples[/]

rbl train --model small-cnn --dataset mnist --data-dir data --out net.safetensors

rbl train --model small-cnn --defense adversarial-training --defense-option eps=0.1 --out robust.safetensors

rbl train --model small-cnn --defense adversarial-training --train-option validation=200 --figure curves.png \
  --history curves.csv --out robust.safetensors

torchrun --nproc-per-node 2 --no-python rbl train --model small-cnn --dataset mnist --out net.safetensors

With --weights the training begins there. One that was killed goes on where it was when the same command is given again.
"""


def train(
    out: Annotated[Path, typer.Option(help="PATH.safetensors that receives the network.", rich_help_panel="Result")],
    history: Annotated[
        Path | None,
        typer.Option(help="PATH.csv or .parquet that receives a row an epoch.", rich_help_panel="Result"),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png that receives the curves.", rich_help_panel="Result")
    ] = None,
    model: o.Model = "resnet18",
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    weights_prefix: o.WeightsPrefix = None,
    binary: o.Binary = False,
    defense: o.Defenses = None,
    defense_option: o.DefenseOptions = None,
    dataset: o.DatasetName = "digits",
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    class_names: o.ClassNames = None,
    workers: o.Workers = 2,
    unlabeled: Annotated[
        str | None,
        typer.Option(help="Data set whose training images join without their labels (vat).", rich_help_panel="Data"),
    ] = None,
    epochs: o.Epochs = None,
    lr: Annotated[str | None, typer.Option(help="Highest learning rate.", rich_help_panel="Training")] = None,
    train_batch_size: Annotated[
        str | None, typer.Option("--batch-size", help="Images a step.", rich_help_panel="Training")
    ] = None,
    train_option: Annotated[
        list[str] | None,
        typer.Option(help="Any other part of the recipe, KEY=VALUE.", rich_help_panel="Training"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of initial weights, order and augmentation; default 0.", rich_help_panel="Training"),
    ] = None,
    device: o.Device = "auto",
    as_json: o.AsJson = False,
) -> None:
    """Train a network and write it as safetensors, with its recipe and SHA-256."""
    from ..data_request import DataRequest
    from ..defense import InferenceDefense, wrap_all
    from ..errors import UserError
    from ..files import check_output
    from ..history import SUFFIXES, draw_history, write_history
    from ..models.weights import save_weights
    from ..options import configure
    from ..prepare import make_defenses, pick_device, prepare_model
    from ..processes import main_process
    from ..recipe import Recipe
    from .reading import read_data
    from .terminal import note, print_json, training_bar

    defenses = make_defenses(defense or [], defense_option or [])
    standing = [d for d in defenses if isinstance(d, InferenceDefense)]
    for idle in [d.name for d in standing if not d.trained_behind]:
        raise UserError(f"--defense: {idle} trains nothing; give it to rbl evaluate with --weights {out.name}")
    weights = o.with_prefix(weights, weights_prefix)
    given = {"epochs": epochs, "lr": lr, "batch_size": train_batch_size, "seed": seed}
    recipe = o.merged("--train-option", train_option, given)
    normalize = o.normalization(mean, std)
    configure(Recipe, recipe, argument="--train-option")
    request = DataRequest(dataset, "test", data_dir, download, image_size, workers, o.class_list(class_names))
    device = pick_device(device)
    out = out.expanduser()
    check_output(out, argument="--out", suffix=".safetensors")
    if history is not None:
        check_output(history, argument="--history", suffix=SUFFIXES)
    if figure is not None:
        check_output(figure, argument="--figure", suffix=".png")
    request, (data, *_) = read_data(request, [(model, weights)], *_splits(request))
    with training_bar(f"training {model}") as progress:
        network = prepare_model(
            model,
            request,
            data,
            weights=weights,
            binary=binary,
            defenses=defenses,
            recipe=recipe,
            retrain=True,
            unlabeled=unlabeled,
            device=device,
            progress=progress,
            note=note,
            normalize=normalize,
        )
    if not main_process():
        return
    said: dict[str, Any] = {"recipe": network.recipe or {}, "history": network.history, "classes": data.classes}
    save_weights(network.module, out, model=model, **said)
    if history is not None:
        write_history(network.history, history)
    if figure is not None:
        names = " + ".join([network.name, *(d.name for d in defenses)])
        draw_history(network.history, figure, title=f"{names} on {data.name}")
    accuracy = _accuracy(wrap_all(network.module, standing), request, device)
    row = {
        "file": str(out),
        "sha256": network.sha256,
        "parameters": network.parameters,
        "test_accuracy": accuracy,
    }
    if as_json:
        print_json(row)
    else:
        typer.echo(f"{out}: {network.name}, {network.parameters:,} parameters, SHA-256 {network.sha256[:16]}...")
        for path in filter(None, (history, figure)):
            typer.echo(f"{path}: {len(network.history)} epochs")
        if accuracy is not None:
            typer.echo(f"test accuracy {100 * accuracy:.2f} %")


def _splits(request: DataRequest) -> tuple[str, ...]:
    """The training split, and the test split where the data set has one."""
    from ..errors import UserError

    try:
        request.load("test")
    except UserError:
        return ("train",)
    return ("train", "test")


def _accuracy(module: object, request: object, device: str) -> float | None:
    """Accuracy on the test split; None for a data set that has none."""
    import torch

    from ..data_request import DataRequest
    from ..errors import UserError
    from ..foreign import ask

    assert isinstance(request, DataRequest)
    assert isinstance(module, torch.nn.Module)
    try:
        data = request.load("test")
    except UserError:
        return None
    right = 0
    with torch.no_grad():
        for _, x, y in data.blocks(torch.arange(len(data)), 256):
            right += int((ask(module, x.to(device)).argmax(1).cpu() == y).sum())
    return right / len(data)
