"""`rbl certify`: what is proved of a model, beside what an attack found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from ..certification_plan import CertificationPlan
    from ..certified import Certified

EPILOG = """\
[bold]Examples[/]

rbl certify --method crown --model small-cnn --weights net.safetensors --dataset mnist --data-dir data --eps 0.1

rbl certify --method interval --model small-cnn --weights ibp.safetensors --eps 0.1 --json

rbl certify --method smoothing --defense randomized-smoothing --defense-option sigma=0.25 --model small-cnn \
  --weights noisy.safetensors --dataset mnist --samples 500 --n 10000 --figure radius.png

A certification that was killed goes on where it was when the same command is given again.
"""


def certify(
    method: Annotated[
        str, typer.Option(help="interval, crown, smoothing, or FILE.py:NAME.", rich_help_panel="Method")
    ] = "crown",
    norm: Annotated[
        str | None,
        typer.Option(help="linf, l2, l1 or l0; default the method's first.", rich_help_panel="Method"),
    ] = None,
    eps: o.Eps = None,
    n0: Annotated[
        str | None, typer.Option("--n0", help="Noisy copies that choose the class.", rich_help_panel="Method")
    ] = None,
    n: Annotated[
        str | None, typer.Option("--n", help="Noisy copies that count how often it wins.", rich_help_panel="Method")
    ] = None,
    alpha: Annotated[
        str | None, typer.Option(help="Chance that an image's radius is too large.", rich_help_panel="Method")
    ] = None,
    method_option: Annotated[
        list[str] | None, typer.Option(help="Any option of the method, KEY=VALUE.", rich_help_panel="Method")
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
    samples: o.Samples = None,
    split: Annotated[str, typer.Option(help="test or train.", rich_help_panel="Data")] = "test",
    data_dir: o.DataDir = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    class_names: o.ClassNames = None,
    workers: o.Workers = 2,
    epochs: o.Epochs = None,
    seed: Annotated[int, typer.Option(help="Of the method's random numbers.", rich_help_panel="Computing")] = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    leaderboard: o.Leaderboard = Path("results"),
    resume: Annotated[
        bool, typer.Option(help="Go on with an unfinished certificate, or start it anew.", rich_help_panel="Result")
    ] = True,
    figure: Annotated[
        Path | None,
        typer.Option(help="PATH.png: certified accuracy over the radius (smoothing).", rich_help_panel="Result"),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Certified accuracy of a model: the share of images that no attack within eps can turn, proved image by image."""
    from ..certification_plan import CertificationPlan, certificate_threat, check_certification, make_certifier
    from ..data import balanced_subset
    from ..data_request import DataRequest
    from ..defense import InferenceDefense
    from ..prepare import make_defenses, pick_device, prepare_model, recorded_defenses
    from .evaluate import check_board
    from .reading import read_data
    from .terminal import note, training_bar, warn

    leaderboard = leaderboard.expanduser()
    options = o.merged("--method-option", method_option, {"n0": n0, "n": n, "alpha": alpha})
    certifier = make_certifier(method, options)
    threat = certificate_threat(norm, eps, certifier)
    weights = o.with_prefix(weights, weights_prefix)
    o.check_model_name(model)
    normalize = o.normalization(mean, std)
    defenses = make_defenses(defense or [], defense_option or [])
    device = pick_device(device)
    check_board(leaderboard / "certificates")
    if figure is not None:
        _check_figure(figure, per_image=certifier.per_image)
    request = DataRequest(dataset, split, data_dir, download, image_size, workers, o.class_list(class_names))
    request, (data,) = read_data(request, [(model, weights)])
    shape = tuple(data.shape)
    check_certification(certifier, threat, defenses, shape=shape, seed=seed, batch_size=batch_size)
    index = balanced_subset(data.labels, len(data) if samples is None else samples)
    for doubt in certifier.doubts([d for d in defenses if isinstance(d, InferenceDefense)], threat):
        warn(doubt)
    with training_bar(f"training {model}") as bar:
        recipe = {} if epochs is None else {"epochs": epochs}
        network = prepare_model(
            model,
            request,
            data,
            weights=weights,
            binary=binary,
            defenses=defenses,
            recipe=recipe,
            device=device,
            progress=bar,
            note=note,
            normalize=normalize,
        )
    made_by = recorded_defenses(network, defenses)
    plan = CertificationPlan(
        model=network,
        data=data,
        index=index,
        certifier=certifier,
        threat=threat,
        options=options,
        defenses=[*made_by, *defenses],
        defense_specs=[*(d.name for d in made_by), *(defense or [])],
        seed=seed,
        batch_size=batch_size,
        device=device,
    )
    found = _run(plan, leaderboard, resume=resume)
    if figure is not None:
        from ..certificate_figure import save_radii

        save_radii(figure, [found.certificate])
    _show(found, leaderboard, as_json=as_json, figure=figure)


def _check_figure(path: Path, *, per_image: bool) -> None:
    from ..errors import UserError
    from ..files import check_output

    if not per_image:
        raise UserError("--figure: only smoothing finds a radius for every image, over which accuracy could be drawn")
    check_output(path, argument="--figure", suffix=".png")


def _run(plan: CertificationPlan, leaderboard: Path, *, resume: bool) -> Certified:
    from ..certification import run_certification
    from ..leaderboard import build
    from .terminal import count_bar, gentle_interrupt, note, warn

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(gentle_interrupt())

        def begin(done: int) -> Callable[[float], None]:
            return stack.enter_context(count_bar(f"certifying {plan.model.name}", len(plan.index), done))

        found = run_certification(plan, leaderboard=leaderboard, resume=resume, begin=begin, stop=stop, note=note)
    for problem in build(leaderboard)[1]:
        warn(problem)
    return found


def _show(found: Certified, leaderboard: Path, *, as_json: bool, figure: Path | None) -> None:
    from rich.console import Console

    from .terminal import print_json

    row = found.summary()
    if as_json:
        print_json(row)
        return
    out = Console(emoji=False, highlight=False, soft_wrap=True)
    for number, line in enumerate(lines(found)):
        out.print(line, markup=False, style="bold" if not number else "")
    if figure is not None:
        out.print(f"  {'figure':<18} {figure}", markup=False)
    out.print(f"  {'see all':<18} rbl leaderboard show --leaderboard {leaderboard}", markup=False)


def lines(found: Certified) -> Iterator[str]:
    """What is said of a certificate, the headline first."""
    from ..records.specification import threat_text

    row, s = found.summary(), found.certificate.specification
    count = row["n"]
    yield (
        f"{row['model']} on {row['dataset']}, defense {row['defense']}, method {row['method']}, "
        f"{threat_text(row['norm'], row['eps'])}, {count:,} image{'s' if count > 1 else ''}"
    )
    interval = f"(95 % interval {100 * row['certified_low']:.1f} to {100 * row['certified_high']:.1f})"
    said = {
        "clean accuracy": f"{100 * row['clean_accuracy']:.1f} %",
        "certified accuracy": f"{100 * row['certified_accuracy']:.1f} %  {interval}",
    }
    if s.method.per_image:
        said["abstained"] = f"{100 * row['abstained']:.1f} %"
        width = 1 + max(7, *map(len, row["certified_at"]))
        said["radius"] = "".join(f"{radius:>{width}}" for radius in row["certified_at"])
        said["certified, %"] = "".join(f"{100 * share:{width}.1f}" for share in row["certified_at"].values())
    said["cost"] = f"{row['seconds']:.1f} s"
    again = " (the same rows as the certificate that was there)" if found.settled == "reproduced" else ""
    said["certificate"] = f"{row['certificate_file']}{again}"
    for name, value in said.items():
        yield f"  {name:<18} {value}"
