"""Everything that can be asked for by name, where it came from, and the tables made of that."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import PluginError
from ..registry import Entry, builtins, installed

KINDS = ("attacks", "defenses", "models", "datasets", "certifiers")

OWN_LIMITS = "limits of its own"  # in the place of norms

# What the table of a kind shows beside name, summary, origin and source.
_FACTS = {
    "attacks": ("access", "norms", "targeted"),
    "defenses": ("stage", "randomised", "differentiable"),
    "models": (),
    "datasets": (),
    "certifiers": ("norms",),
}


@dataclass(frozen=True)
class Plugin:
    """One name: what is behind it, in words, or why it cannot be loaded (`broken`, else empty)."""

    kind: str
    name: str
    origin: str
    summary: str = ""
    source: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    broken: str = ""

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        record = asdict(self)
        facts = record.pop("facts")
        return {**record, **facts, "broken": self.broken or None}

    def cells(self) -> list[str]:
        """The row of a table with these columns."""
        if self.broken:
            return [self.name, f"broken: {self.broken}", *[""] * len(_FACTS[self.kind]), self.origin, ""]
        facts = [fact_text(self.facts[name]) for name in _FACTS[self.kind]]
        return [self.name, self.summary, *facts, self.origin, self.source]


def columns(kind: str) -> list[str]:
    """The heads of a kind's table."""
    return ["name", "what it does", *_FACTS[kind], "origin", "source"]


def facts_of(kind: str) -> tuple[str, ...]:
    """The heads of what a kind's table shows beside name, summary, origin and source."""
    return _FACTS[kind]


def list_plugins(kind: str) -> list[Plugin]:
    """Every name of a kind; one that cannot be loaded is listed with the reason and hides none of the others."""
    own = builtins(kind)
    listed = [describe(entry) for _, entry in sorted(own.items())]
    for name, entry in sorted(installed(kind).items()):
        if name in own:
            reason = f"the built-in {name} has the same name and is taken instead"
            listed.append(Plugin(kind, name, entry.origin, broken=reason))
        else:
            listed.append(describe(entry))
    return listed


def describe(entry: Entry) -> Plugin:
    """What an entry holds, in words; loading it imports it."""
    try:
        thing = entry.load()
        return described(entry, thing)
    except (Exception, SystemExit) as error:
        # A plug-in may raise anything; the list must not end at it.
        return Plugin(entry.kind, entry.name, entry.origin, broken=_one_line(error))


def described(entry: Entry, thing: Any) -> Plugin:
    """What a plug-in says of itself, for a line of the list."""
    name = getattr(thing, "name", entry.name)
    shown = entry.name if name == entry.name else f"{entry.name} ({name})"
    facts = _FACTS_OF[entry.kind](thing) if entry.kind in _FACTS_OF else {}
    text = {what: " ".join(str(getattr(thing, what, "")).split()) for what in ("summary", "source")}
    return Plugin(entry.kind, shown, entry.origin, text["summary"].rstrip("."), text["source"], facts)


def _attack(thing: Any) -> dict[str, Any]:
    from ..attack import Attack

    if not (isinstance(thing, type) and issubclass(thing, Attack)):
        raise TypeError("it is no subclass of robustbench_lite.Attack")
    norms = [OWN_LIMITS] if thing.own_limits else list(thing.norms)
    return {"access": str(thing.access), "norms": norms, "targeted": bool(thing.targeted)}


def _defense(thing: Any) -> dict[str, Any]:
    from ..defense import InferenceDefense, TrainingDefense

    if isinstance(thing, type) and issubclass(thing, InferenceDefense):
        stated = {"randomised": thing.randomized, "differentiable": thing.differentiable}
        return {"stage": "inference", **stated, "adaptive": _adaptive(thing)}
    if isinstance(thing, type) and issubclass(thing, TrainingDefense):
        return {"stage": "training", "randomised": None, "differentiable": None, "adaptive": _adaptive(thing)}
    raise TypeError("it is no subclass of robustbench_lite.InferenceDefense or robustbench_lite.TrainingDefense")


def _adaptive(thing: Any) -> str:
    """The attack made for a defense, as a person writes it: `pgd steps=200`."""
    return " ".join([thing.adaptive, *(f"{name}={value}" for name, value in thing.adaptive_options.items())])


def _certifier(thing: Any) -> dict[str, Any]:
    from ..certifier import Certifier

    if not (isinstance(thing, type) and issubclass(thing, Certifier)):
        raise TypeError("it is no subclass of robustbench_lite.Certifier")
    return {"norms": list(thing.norms)}


_FACTS_OF: dict[str, Callable[[Any], dict[str, Any]]] = {
    "attacks": _attack,
    "defenses": _defense,
    "certifiers": _certifier,
}


def _one_line(error: BaseException) -> str:
    text = str(error) or "".join(traceback.format_exception_only(error))
    line = text.strip().splitlines()[0]
    return line if isinstance(error, (PluginError, TypeError, ValueError)) else f"{type(error).__name__}: {line}"


def fact_text(fact: Any) -> str:
    """A fact in a word or two."""
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, (list, tuple)):
        return ", ".join(map(str, fact))
    return "" if fact is None else str(fact)


def markdown_table(kind: str, entries: Sequence[Plugin], *, origin: bool = True) -> str:
    """The rows of a kind as a Markdown table, ending in a newline."""
    heads = columns(kind)
    keep = [i for i, head in enumerate(heads) if origin or head != "origin"]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells[i].replace("|", "\\|").replace("\n", " ") for i in keep) + " |"

    lines = [row(heads), "|" + " --- |" * len(keep)]
    for entry in entries:
        name, *rest = entry.cells()
        lines.append(row([f"`{name}`", *rest]))
    return "\n".join(lines) + "\n"


def _builtin_table(kind: str) -> str:
    return markdown_table(kind, [describe(entry) for _, entry in sorted(builtins(kind).items())], origin=False)


def attack_table_markdown() -> str:
    """The built-in attacks as a Markdown table: name, what it does, access, norms, targeted, source."""
    return _builtin_table("attacks")


def defense_table_markdown() -> str:
    """The built-in defenses as a Markdown table: name, what it does, stage, randomised, differentiable, source."""
    return _builtin_table("defenses")


def readme_tables() -> str:
    """Both tables under their headings, as the README holds them."""
    return f"### Attacks\n\n{attack_table_markdown()}\n### Defenses\n\n{defense_table_markdown()}"
