"""`rbl plugins`, `rbl attacks` and `rbl defenses`: what is there, a file to start from, and the checks of one."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from .app import App
from .listing import OWN_LIMITS, attack_table_markdown, defense_table_markdown, readme_tables

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
    certifiers = "certifiers"


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
attacks_app = App(
    help="Write an attack of your own, and check one.",
    epilog="[bold]Example[/]  rbl attacks new my_attack.py",
    **_GROUP,
)
defenses_app = App(
    help="Write a defense of your own, and check one.",
    epilog="[bold]Example[/]  rbl defenses new my_defense.py",
    **_GROUP,
)
EPILOG = """\
[bold]Examples[/]

rbl plugins attacks --format markdown (with authors and papers in full)

rbl plugins attacks pgd (its options and their defaults)
"""

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
    name: Annotated[
        str | None,
        typer.Argument(help="Only this one, with its options: NAME, FILE.py:NAME or package.module:NAME."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.rich,
) -> None:
    """List every attack, defense, model family, data set and certifier, with where it came from and its source.

    A plug-in that cannot be loaded is listed as broken, with the reason. With a NAME, what that one is and every option
    with its default.
    """
    from .listing import KINDS, list_plugins, markdown_table
    from .terminal import print_json, warn

    if kind is not None and name is not None:
        from .details import details

        told = details(kind.value, name)
        if format is Format.json:
            print_json(told.record())
        else:
            sys.stdout.write(told.markdown() if format is Format.markdown else told.text())
        return
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
_SHORT_HEADS = {"targeted": "tar-\ngeted", "randomised": "random-\nised", "differentiable": "differ-\nentiable"}
_PAPER_COLUMN = 100  # columns of a terminal in which the paper has one of its own; else it stands below the name


def _print(kind: str, entries: list[Plugin]) -> None:
    from .listing import facts_of

    console = Console(emoji=False, highlight=False)
    wide = console.width >= _PAPER_COLUMN
    papers = any(_paper(plugin) for plugin in entries)
    built_in = all(plugin.origin == "built-in" for plugin in entries)
    title = f"{kind}: {len(entries)}, built-in{'' if built_in else ' where nothing else is said'}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for head in ("name", *facts_of(kind)):
        shown = "name, arXiv" if head == "name" and papers and not wide else _SHORT_HEADS.get(head, head)
        table.add_column(shown, header_style="dim", overflow="fold", no_wrap=True)
    table.add_column("what it does", header_style="dim", overflow="fold", ratio=1)
    if papers and wide:
        table.add_column("arXiv", header_style="dim", no_wrap=True)
    for plugin in entries:
        table.add_row(*_row(plugin, paper=_paper(plugin), wide=wide, papers=papers))
    console.print(table)
    console.print()


def _row(plugin: Plugin, *, paper: str, wide: bool, papers: bool) -> list[Text]:
    """Name, facts, what it does, with where it came from if that is elsewhere, and the paper's number."""
    name, summary, *facts, origin, _ = plugin.cells()
    style = "red" if plugin.broken else ""
    first = Text(name, style=style)
    if paper and not wide:
        first.append(f"\n{paper}", style="dim")
    said = Text(summary, style=style)
    if origin != "built-in":
        said.append(f" ({origin})", style="dim")
    cells = [first, *(Text(_short(fact), style=style) for fact in facts), said]
    return [*cells, Text(paper, style="dim")] if papers and wide else cells


def _short(fact: str) -> str:
    """Norms without commas."""
    return "its own" if fact == OWN_LIMITS else fact.replace(", ", " ")


def _paper(plugin: Plugin) -> str:
    """The number of the first arXiv paper that the source names; empty for none."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", plugin.source)
    return found[1] if found else ""


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
    Console(emoji=False, highlight=False).print(table)
    wrong = failed(checks)
    if wrong:
        names = ", ".join(check.name for check in wrong)
        raise UserError(f"{spec}: {len(wrong)} of {len(checks)} checks failed: {names}")
