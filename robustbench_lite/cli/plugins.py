"""`rbl plugins`, `rbl attacks` and `rbl defenses`: what is there, a file to start from, and the checks of one."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from .listing import attack_table_markdown, defense_table_markdown, readme_tables

if TYPE_CHECKING:
    from ..conformance import Check
    from .listing import Plugin


__all__ = [
    "attack_table_markdown",
    "attacks_app",
    "defense_table_markdown",
    "defenses_app",
    "plugins",
    "readme_tables",
]


class Kind(StrEnum):
    """What can be plugged in."""

    attacks = "attacks"
    defenses = "defenses"
    models = "models"
    datasets = "datasets"


class Format(StrEnum):
    """How a table is written."""

    rich = "rich"
    json = "json"
    markdown = "markdown"


class DefenseKind(StrEnum):
    """The two contracts of a defense."""

    inference = "inference"
    training = "training"


_GROUP: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": "rich"}
attacks_app = typer.Typer(
    help="Write an attack of your own, and check one.",
    epilog="[bold]Example[/]  rbl attacks new my_attack.py",
    **_GROUP,
)
defenses_app = typer.Typer(
    help="Write a defense of your own, and check one.",
    epilog="[bold]Example[/]  rbl defenses new my_defense.py",
    **_GROUP,
)
EPILOG = "[bold]Example[/]  rbl plugins defenses --format markdown"

Spec = Annotated[str, typer.Argument(help="NAME, FILE.py:NAME or package.module:NAME.", show_default=False)]
NewFile = Annotated[Path, typer.Argument(metavar="FILE.py", help="A file that is not there yet.", show_default=False)]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="KEY=VALUE, an option of what is checked; repeat for more.")
]
Size = Annotated[
    str | None,
    typer.Option("--shape", help="C,H,W of the images to check with, e.g. 3,32,32; default: several."),
]


def plugins(
    kind: Annotated[Kind | None, typer.Argument(help="Only one kind.", show_default=False)] = None,
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.rich,
) -> None:
    """List every attack, defense, model family and data set, with where it came from and its source.

    A plug-in that cannot be loaded is listed as broken, with the reason.
    """
    from .listing import KINDS, list_plugins, markdown_table
    from .terminal import print_json, warn

    found = {k: list_plugins(k) for k in KINDS if kind is None or k == kind.value}
    if format is Format.json:
        print_json([plugin.record() for entries in found.values() for plugin in entries])
    elif format is Format.markdown:
        parts = [f"### {name.capitalize()}\n\n{markdown_table(name, entries)}" for name, entries in found.items()]
        sys.stdout.write("\n".join(parts))
    else:
        for name, entries in found.items():
            _print(name, entries)
    for plugin in (plugin for entries in found.values() for plugin in entries if plugin.broken):
        warn(f"{plugin.kind}: {plugin.name} of {plugin.origin} is broken: {plugin.broken}")


# Heads that are longer than what stands below them, so that a table fits 80 columns.
_BROKEN_HEADS = {"randomised": "random-\nised", "differentiable": "differ-\nentiable"}


def _print(kind: str, entries: list[Plugin]) -> None:
    from .listing import columns

    table = Table(title=kind, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    heads = [head for head in columns(kind) if head != "source"]
    for head in heads:
        table.add_column(
            _BROKEN_HEADS.get(head, head),
            header_style="dim",
            overflow="fold",
            no_wrap=head == "name",
            min_width=22 if head == "what it does" else None,
        )
    for plugin in entries:
        *cells, source = (Text(cell, style="red" if plugin.broken else "") for cell in plugin.cells())
        if source:
            cells[1].append(f"\n{source}", style="dim")
        table.add_row(*cells)
    console = Console(highlight=False)
    console.print(table)
    console.print()


@attacks_app.command("new", epilog="[bold]Example[/]  rbl attacks new my_attack.py")
def new_attack(file: NewFile) -> None:
    """Write a working, commented attack to start from."""
    _write(file, template="attack", kind="attacks")


@defenses_app.command("new", epilog="[bold]Example[/]  rbl defenses new my_defense.py --kind training")
def new_defense(
    file: NewFile,
    kind: Annotated[
        DefenseKind, typer.Option(help="It stands in front of a trained network, or it is a way of training.")
    ] = DefenseKind.inference,
) -> None:
    """Write a working, commented defense of either kind to start from."""
    _write(file, template=f"defense_{kind.value}", kind="defenses")


def _write(file: Path, *, template: str, kind: str) -> None:
    from ..templates import write_template
    from .terminal import note

    name = write_template(file, template)
    sys.stdout.write(f"{file}\n")
    note(f"it works as it is; next: rbl {kind} check {file}:{name}")


@attacks_app.command(
    "check",
    epilog="[bold]Examples[/]  rbl attacks check pgd -o steps=5      rbl attacks check my_attack.py:MyAttack",
)
def check_attack(spec: Spec, option: Options = None, shape: Size = None) -> None:
    """Check that an attack keeps its contract: ball and box, rows apart, seeds, access, counts, resume.

    Exit status 0 if everything passed, 2 if not.
    """
    from ..conformance import check_attack as check
    from ..options import parse_pairs
    from ..registry import load

    attack = load("attacks", spec, argument="SPEC")
    _report(spec, check(attack, options=parse_pairs("--option", option or []), **_shapes(shape)))


@defenses_app.command(
    "check",
    epilog="[bold]Examples[/]  rbl defenses check bit-depth -o bits=3      rbl defenses check my_defense.py:MyDefense",
)
def check_defense(spec: Spec, option: Options = None, shape: Size = None) -> None:
    """Check that a defense keeps its contract, and that what it states of itself is true.

    Shape and range, gradients against finite differences, randomness. Exit status 0 if everything passed, 2 if not.
    """
    from ..conformance import check_defense as check
    from ..options import parse_pairs
    from ..registry import load

    defense = load("defenses", spec, argument="SPEC")
    _report(spec, check(defense, options=parse_pairs("--option", option or []), **_shapes(shape)))


def _shapes(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--shape must be C,H,W such as 3,32,32, got {text!r}")
    return {"shapes": [tuple(map(int, parts))]}


def _report(spec: str, checks: list[Check]) -> None:
    from ..conformance import failed

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("outcome", "check", "detail"):
        table.add_column(column, overflow="fold", no_wrap=column != "detail")
    for check in checks:
        outcome = Text("ok", style="green") if check.ok else Text("failed", style="bold red")
        table.add_row(outcome, check.name, Text(check.detail, style="" if not check.ok else "dim"))
    Console(highlight=False).print(table)
    wrong = failed(checks)
    if wrong:
        names = ", ".join(check.name for check in wrong)
        raise UserError(f"{spec}: {len(wrong)} of {len(checks)} checks failed: {names}")
