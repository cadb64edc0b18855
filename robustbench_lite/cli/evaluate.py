"""`rbl evaluate`: one attack on one model, to a line on a leaderboard."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from ..defense import Defense
    from ..models import LoadedModel, Normalization
    from ..plan import Plan
    from ..records.run import Run
    from ..result import Result
    from .tables import Addition

EPILOG = """\
[bold]Examples[/]

rbl evaluate --model resnet18 --attack pgd

rbl evaluate --model small-cnn --weights net.pth --dataset mnist --data-dir data --eps 0.3 --steps 40

rbl evaluate --defense bit-depth --defense-option bits=3 --attack pgd --figure out.png

rbl evaluate --model net.py:make --dataset npz:images.npz --norm l2 --eps 0.5 --target all --json

rbl evaluate --model resnet18 --attack pgd --attack square --attack fab-t --attack-option pgd.steps=100

rbl evaluate --model resnet18 --attack transfer:pgd --surrogate small-cnn --surrogate mlp
"""


def evaluate(
    model: o.Model = "resnet18",
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    weights_prefix: o.WeightsPrefix = None,
    binary: o.Binary = False,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, FILE.py:NAME or transfer:NAME; see rbl plugins. Several: the worst case of each image.",
            rich_help_panel="Attack",
            show_default="pgd",
        ),
    ] = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    steps: o.Steps = None,
    step_size: Annotated[
        str | None, typer.Option(help="Length of a step, in the norm.", rich_help_panel="Attack")
    ] = None,
    restarts: Annotated[str | None, typer.Option(help="Restarts of the attack.", rich_help_panel="Attack")] = None,
    loss: Annotated[str | None, typer.Option(help="ce, margin or dlr.", rich_help_panel="Attack")] = None,
    attack_option: o.AttackOptions = None,
    target: Annotated[
        str | None,
        typer.Option(help="random, next, least-likely, all, or a class; default untargeted.", rich_help_panel="Attack"),
    ] = None,
    surrogate: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL or MODEL=WEIGHTS that transfer:ATTACK attacks in place of the model; several: an ensemble.",
            rich_help_panel="Attack",
        ),
    ] = None,
    max_queries: Annotated[
        int | None,
        typer.Option(help="Forward passes that an image may cost; default no limit.", rich_help_panel="Attack"),
    ] = None,
    fit_samples: Annotated[
        int,
        typer.Option(
            help="Training images that an attack learns from which learns, such as uap.", rich_help_panel="Attack"
        ),
    ] = 512,
    checks: Annotated[
        bool,
        typer.Option(
            help="Afterwards let small attacks of other kinds look at images left standing.", rich_help_panel="Attack"
        ),
    ] = True,
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
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 256,
    device: o.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Of the search: float32, bf16 or f16; proofs are in float32.", rich_help_panel="Computing"),
    ] = "float32",
    deterministic: o.Deterministic = False,
    eot: Annotated[
        int | None,
        typer.Option(help="Draws averaged per query of a randomised model; default 8.", rich_help_panel="Computing"),
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option(help="Draws averaged per verdict of a randomised model; default 16.", rich_help_panel="Computing"),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="I/N: this part of the samples only.", rich_help_panel="Computing")
    ] = None,
    leaderboard: o.Leaderboard = Path("results"),
    resume: Annotated[
        bool, typer.Option(help="Go on with an unfinished run, or start it anew.", rich_help_panel="Result")
    ] = True,
    save_examples: Annotated[
        Path | None, typer.Option(help="PATH.npz: images, adversarial images, labels.", rich_help_panel="Result")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PATH.png: image, perturbation, adversarial image.", rich_help_panel="Result")
    ] = None,
    print_photo: Annotated[
        bool,
        typer.Option(
            "--print-photo", help="Which adversarial images survive light, blur, JPEG, ...", rich_help_panel="Result"
        ),
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Robust accuracy of a model under an attack, proved in a run file and put on a leaderboard."""
    from ..data_request import DataRequest
    from ..perturbation import make_attack
    from ..plan import Plan, check_settings, make_threat
    from ..prepare import (
        defense_images,
        fit_images,
        make_defenses,
        parse_shard,
        pick_device,
        prepare_model,
        recorded_defenses,
    )
    from ..surrogate import Surrogate
    from .reading import read_data
    from .terminal import note, training_bar

    leaderboard = leaderboard.expanduser()
    attacks = attack or ["pgd"]
    threat = make_threat(norm, eps, attacks)
    attack_options = o.merged(
        "--attack-option",
        attack_option,
        {"steps": steps, "step_size": step_size, "restarts": restarts, "loss": loss},
    )
    weights = o.with_prefix(weights, weights_prefix)
    o.check_model_name(model)
    normalize = o.normalization(mean, std)
    for spec in surrogate or []:
        o.check_model_name(spec.partition("=")[0], "--surrogate")
    promised = [Surrogate.promised(spec) for spec in surrogate or []]
    made_attack = make_attack(attacks, attack_options, threat, surrogates=promised)
    defenses = make_defenses(defense or [], defense_option or [])
    part, device = parse_shard(shard), pick_device(device)
    _check_paths(leaderboard, save_examples, figure)
    request = DataRequest(dataset, split, data_dir, download, image_size, workers, o.class_list(class_names))
    named = [(spec, file or None) for spec, _, file in (each.partition("=") for each in surrogate or [])]
    request, (data,) = read_data(request, [(model, weights), *named])
    from ..data import balanced_subset

    settings: dict[str, Any] = {
        "data": data,
        "index": balanced_subset(data.labels, len(data) if samples is None else samples),
        "attack": made_attack,
        "threat": threat,
        "target": target,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "eot": eot,
        "votes": votes,
        "shard": part,
        "max_queries": max_queries,
    }
    check_settings(**settings)
    settings["fit"] = fit_images(request, made_attack, threat, fit_samples)
    settings["learn_from"] = defense_images(request, defenses)
    settings["checks"] = checks

    def prepared(
        spec: str,
        weights: str | None,
        defenses: Sequence[Defense] = (),
        normalize: Normalization | None = None,
        *,
        binary: bool = False,
    ) -> LoadedModel:
        with training_bar(f"training {spec}") as bar:
            recipe = {} if epochs is None else {"epochs": epochs}
            given: dict[str, Any] = {"weights": weights, "defenses": defenses, "recipe": recipe, "device": device}
            given |= {"binary": binary, "normalize": normalize}
            return prepare_model(spec, request, data, **given, progress=bar, note=note)

    network = prepared(model, weights, defenses, normalize, binary=binary)
    if surrogate:
        with o.naming("--surrogate"):
            loaded = [Surrogate.of(prepared(name, file)) for name, file in named]
        settings["attack"] = make_attack(attacks, attack_options, threat, surrogates=loaded)
    made_by = recorded_defenses(network, defenses)
    plan = Plan(
        **settings,
        model=network,
        attack_options=attack_options,
        defenses=[*made_by, *defenses],
        defense_specs=[*(d.name for d in made_by), *(defense or [])],
        device=device,
        deterministic=deterministic,
        keep_images=save_examples is not None or figure is not None or print_photo,
    )
    result = _run(plan, leaderboard, resume=resume, save_examples=save_examples)
    if figure is not None:
        from ..figure import figure_of

        figure_of(result, plan, figure)
    from . import tables

    more = [tables.by_cell(plan, result, leaderboard)] if plan.attack.cells else []
    more += [tables.print_photo(plan, result)] if print_photo else []
    _show(_assembled(result), leaderboard, as_json=as_json, save_examples=save_examples, figure=figure, more=more)


def _check_paths(leaderboard: Path, save_examples: Path | None, figure: Path | None) -> None:
    """What would fail at the end of a long run fails before it."""
    check_board(leaderboard / "runs")
    if save_examples is not None:
        from ..examples import check_examples_path

        check_examples_path(save_examples)
    if figure is not None:
        from ..figure import check_figure_path

        check_figure_path(figure)


def check_board(folder: Path) -> None:
    """Whether files can be written there; a folder that is missing is made only when there is one to put in."""
    from ..errors import UserError

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"--leaderboard must be a folder that can be written, got {str(folder.parent)!r} "
            f"({error.strerror}); give another folder"
        ) from None


def _run(plan: Plan, leaderboard: Path, *, resume: bool, save_examples: Path | None) -> Result:
    from ..leaderboard import build
    from ..plan_run import run_plan
    from .terminal import attack_bar, gentle_interrupt, note, warn

    def save(result: Result) -> Run:
        if save_examples is None:
            return result.run
        from ..examples import save_examples as save_npz

        examples = save_npz(save_examples, result, plan.data.images(plan.order))
        return replace(result.run, specification=replace(result.run.specification, examples=examples))

    _announce(plan)
    label = f"{plan.attack.name} on {plan.model.name}"
    with gentle_interrupt() as stop, attack_bar(label, len(plan.order)) as progress:
        result = run_plan(
            plan,
            leaderboard=leaderboard,
            resume=resume,
            progress=progress,
            stop=stop,
            note=note,
            warn=warn,
            before_write=save,
        )
    for problem in build(leaderboard)[1]:
        warn(problem)
    return result


def _announce(plan: Plan) -> None:
    """What attacks over attacks will cost, before they begin."""
    from ..options import option_types
    from ..portfolio import Part, Portfolio
    from ..worst_case import WorstCase
    from .terminal import note

    if not isinstance(plan.attack, Portfolio):
        return
    attack, threat = plan.attack, plan.threat
    parts = [Part.of(part).attack for part in attack.parts(threat)]
    if isinstance(attack, WorstCase):
        about = f"{attack.name}: {len(parts)} attacks in turn, each on the images that survive those before it"
        if nearest := ", ".join(part.name for part in parts if part.minimal):
            note(
                f"{nearest}: stops at the first image within eps, so no distances are reported; for these run it alone"
            )
    else:
        options = ", ".join(f"{name}={getattr(attack, name)}" for name in option_types(type(attack)))
        about = f"{attack.name}{f' ({options})' if options else ''}: {len(parts)} parts"
    eot, votes = plan.draws
    turns = len(plan.data.classes) - 1 if plan.target == "all" else 1
    costs = attack.costs(threat, eot=eot, votes=votes, turns=turns)
    if costs is None:
        note(about if isinstance(attack, WorstCase) else f"{about}, {', '.join(part.name for part in parts)}")
        return
    least, most = costs
    if plan.max_queries is None:
        forwards, backwards = (f"{a:,} to {b:,}" for a, b in zip(least, most, strict=True))
    else:
        forwards, backwards = f"at most {min(most[0], plan.max_queries):,}", f"at most {most[1]:,}"
    note(f"{about}; an image that survives costs")
    note(f"  {forwards} forward and {backwards} backward passes")


def _assembled(result: Result) -> Result:
    """The whole run, where this shard was the last one missing and all were put together; else the result itself."""
    from ..records.run import base_name, read_run
    from ..result import Result

    if result.file is None or result.file.exists():
        return result
    whole = result.file.with_name(f"{base_name(result.file)}.parquet")
    return Result(read_run(whole), file=whole) if whole.exists() else result


def _show(
    result: Result,
    leaderboard: Path,
    *,
    as_json: bool,
    save_examples: Path | None,
    figure: Path | None,
    more: Sequence[Addition] = (),
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.text import Text

    from ..reliability import Word, word_of
    from ..report import NAME_WIDTH, by_attack, headline, lines
    from .terminal import print_json

    styles: dict[str, str] = {Word.RELIABLE: "", Word.UPPER_BOUND: "yellow", Word.UNCHECKED: "yellow"}
    row = result.summary()
    if as_json:
        print_json({**row, **{name: value for part in more for name, value in part.json.items()}})
        return
    out = Console(emoji=False, highlight=False, soft_wrap=True)
    model, about = row["model"], headline(row)
    out.print(f"[bold]{escape(model)}[/]{escape(about.removeprefix(model))}")
    for name, value in lines(result, row):
        style = {"robust accuracy": "bold", "verdict": styles.get(word_of(result.verdict) or "", "red")}.get(name, "")
        first, gap, rest = value.partition("  ") if name == "robust accuracy" else (value, "", "")
        shown = Text(f"  {name:<{NAME_WIDTH}} ").append(first, style=style).append(f"{gap}{rest}")
        out.print(shown)
    for line in by_attack(result):
        out.print(line, markup=False)
    again = {
        "reproduced": " (the same verdicts as the run that was there)",
        "checked": " (the same verdicts as the run that was there, whose missing sanity checks were added)",
    }.get(result.settled, "")
    if result.settled.startswith("differs"):
        again = f" ({result.settled} from the run that was there, which is kept)"
    for name, path, after in (
        ("run file", row["run_file"], again),
        ("examples", save_examples, ""),
        ("figure", figure, ""),
    ):
        if path is not None:
            _print_path(out, name, f"{path}", after)
    for part in more:
        for line in part.lines:
            out.print(line, markup=False)
    out.print(f"  see all          rbl leaderboard show --leaderboard {leaderboard}", markup=False)


def _print_path(out: Console, name: str, path: str, after: str) -> None:
    """A path beside its name; in a terminal too narrow for both, whole on a line of its own."""
    beside = f"  {name:<16} {path}"
    if out.is_terminal and len(beside) > out.width:
        out.print(f"  {name}{after}", markup=False)
        out.print(f"{path}" if len(path) + 4 > out.width else f"    {path}", markup=False)
    else:
        out.print(f"{beside}{after}", markup=False)
