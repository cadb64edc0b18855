"""Options that several commands have, with one wording."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..models import Normalization


def merged(argument: str, given: list[str] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """`KEY=VALUE` pairs together with options that have a name of their own; UserError where one is in both."""
    from ..errors import UserError
    from ..options import parse_pairs

    options: dict[str, Any] = dict(parse_pairs(argument, given or []))
    for key, value in named.items():
        if value is not None and key in options:
            raise UserError(f"--{key.replace('_', '-')}: {key} is given twice, here and by {argument}")
        if value is not None:
            options[key] = value
    return options


def with_prefix(weights: str | None, prefix: str | None) -> str | None:
    """`--weights` and `--weights-prefix` as one, `FILE:PREFIX.`; UserError for a prefix without a file."""
    from ..errors import UserError

    if prefix is None:
        return weights
    if weights in (None, "pretrained"):
        raise UserError("--weights-prefix: it is of names in a file; give one with --weights FILE")
    return f"{weights}:{prefix.rstrip('.')}."


@contextlib.contextmanager
def naming(argument: str) -> Iterator[None]:
    """Within: an error about a network names `argument` in place of --model."""
    from ..errors import UserError

    try:
        yield
    except UserError as error:
        error.args = (re.sub(r"^--model\b", argument, str(error)),)
        raise


def class_list(text: str | None) -> tuple[str, ...] | None:
    """What `--class-names` says; None where it is not given."""
    if text is None:
        return None
    from ..data import parse_classes

    return parse_classes(text)


def normalization(mean: str | None, std: str | None) -> Normalization | None:
    """What `--mean` and `--std` say; None where they are not given."""
    if mean is None and std is None:
        return None
    from ..models import Normalization

    return Normalization.parse(mean, std)


def check_model_name(spec: str, argument: str = "--model") -> None:
    """Raise UserError naming `argument` for a name that no network has."""
    from ..models.build import find_source

    with naming(argument):
        find_source(spec)


Model = Annotated[
    str,
    typer.Option(
        help="resnet18 (torchvision, then timm), torchvision:NAME, timm:NAME, small-cnn, mlp, "
        "FILE.py:FACTORY or package.module:FACTORY.",
        rich_help_panel="Model",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="FILE or FILE:KEY (.safetensors, .pt, .pth, .th, .ckpt), or 'pretrained' for the library's own; "
        "nothing: trained once for the data set and kept in the cache.",
        rich_help_panel="Model",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="What the network's images are normalised by, in pixels of [0, 1]: 0.5, or R,G,B, or imagenet, clip, "
        "cifar10, cifar100, mnist, fashion-mnist, half.",
        rich_help_panel="Model",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation, as --mean; default that of the name.", rich_help_panel="Model"),
]
WeightsPrefix = Annotated[
    str | None,
    typer.Option(help="Take the tensors whose names begin so, as model. does, without it.", rich_help_panel="Model"),
]
Binary = Annotated[
    bool,
    typer.Option(
        "--binary",
        help="The network gives one number for each image: the logit or the probability of class 1.",
        rich_help_panel="Model",
    ),
]
Defenses = Annotated[
    list[str] | None,
    typer.Option(
        "--defense", help="NAME or FILE.py:NAME; several stack in the order given.", rich_help_panel="Defense"
    ),
]
DefenseOptions = Annotated[
    list[str] | None,
    typer.Option("--defense-option", help="KEY=VALUE or DEFENSE.KEY=VALUE.", rich_help_panel="Defense"),
]
Norm = Annotated[
    str | None,
    typer.Option(
        help="linf, l2, l1 or l0; default linf, or the first norm of an attack that lacks it.", rich_help_panel="Attack"
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(
        help="Size of the threat in pixels of [0, 1], as 0.03 or 8/255 (l0: how many numbers change); "
        "default 8/255 for linf, 0.5 for l2, 12 for l1, 24 for l0.",
        rich_help_panel="Attack",
    ),
]
Steps = Annotated[str | None, typer.Option(help="Steps of the attack.", rich_help_panel="Attack")]
AttackOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--attack-option", help="Any option of the attack, KEY=VALUE or ATTACK.KEY=VALUE.", rich_help_panel="Attack"
    ),
]
DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, imagenet, folder:PATH, parquet:PATH, npz:PATH.",
        rich_help_panel="Data",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(help="A fixed, class-balanced part of this many images; default all.", rich_help_panel="Data"),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where data sets are looked for, and downloaded to.", rich_help_panel="Data")
]
Download = Annotated[
    bool, typer.Option("--download", help="Download the data set if it is missing.", rich_help_panel="Data")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side to which images of a folder are brought.", rich_help_panel="Data")
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        help="Class names in the order of the network's outputs: a file, A,B,C, or numeric for folders 0, 1, 2, ...",
        rich_help_panel="Data",
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that decode streamed images.", rich_help_panel="Data")]
Epochs = Annotated[
    int | None, typer.Option(help="Epochs of a training; default by the size of the set.", rich_help_panel="Training")
]
Seed = Annotated[int, typer.Option(help="Of the attack's random numbers.", rich_help_panel="Computing")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Computing")]
BatchSize = Annotated[
    int, typer.Option(help="Images under way at once; no result depends on it.", rich_help_panel="Computing")
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Equal to the last bit at any batch size or shard.", rich_help_panel="Computing"
    ),
]
Leaderboard = Annotated[
    Path, typer.Option(help="Folder of run files and the table made of them.", rich_help_panel="Result")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel="Result")]
