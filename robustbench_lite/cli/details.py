"""One plug-in in full: what it is, and every option with its default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..options import option_types
from ..registry import find
from .listing import Plugin, described, fact_text


@dataclass(frozen=True)
class Details:
    """A plug-in, and (name, type, default) of each option; the default is None in words where it is left open."""

    plugin: Plugin
    options: tuple[tuple[str, str, str], ...]

    def facts(self) -> list[tuple[str, str]]:
        """What it is, each with its head."""
        plugin = self.plugin
        facts = [(head, fact_text(value)) for head, value in plugin.facts.items()]
        return [(head, text) for head, text in [*facts, ("origin", plugin.origin), ("source", plugin.source)] if text]

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        options = [dict(zip(("name", "type", "default"), option, strict=True)) for option in self.options]
        return {**self.plugin.record(), "options": options}

    def text(self) -> str:
        """For the terminal, ending in a newline."""
        rows = [(name, f"{kind}, {default}") for name, kind, default in self.options]
        width = max(len(name) for name, _ in [*self.facts(), *rows])
        lines = [f"{self.plugin.name}: {self.plugin.summary}"]
        lines += [f"  {head:<{width}}  {text}" for head, text in self.facts()]
        lines += ["options" if rows else "no options", *(f"  {name:<{width}}  {told}" for name, told in rows)]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """As a heading, a list and a table."""
        facts = "\n".join(f"- {head}: {text}" for head, text in self.facts())
        rows = "\n".join(f"| `{name}` | {kind.replace('|', 'or')} | {told} |" for name, kind, told in self.options)
        table = f"\n| option | type | default |\n| --- | --- | --- |\n{rows}\n" if rows else ""
        return f"### `{self.plugin.name}`\n\n{self.plugin.summary}\n\n{facts}\n{table}"


def details(kind: str, spec: str) -> Details:
    """What `spec` names, in full. UserError for an unknown name, PluginError for one that does not import."""
    entry = find(kind, spec, argument="NAME")
    thing = entry.load()
    fields = dataclasses.fields(thing) if isinstance(thing, type) and dataclasses.is_dataclass(thing) else ()
    kinds = option_types(thing) if fields else {}
    options = tuple((f.name, _kind(kinds[f.name]), _default(f)) for f in fields if f.init)
    return Details(described(entry, thing), options)


def _kind(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return "none" if field.default is None else fact_text(field.default)
    return "must be given" if field.default_factory is dataclasses.MISSING else fact_text(field.default_factory())
