"""A sweep's TOML file, read with the key named wherever something in it is wrong."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data import parse_classes
from ..errors import UserError, close_names
from ..models.build import find_source
from ..models.normalize import Normalization
from ..plan import make_threat
from ..prepare import defense_classes
from ..records.schema import NORMS
from ..surrogate import PREFIX
from ..threat import Threat
from .plan import (
    ADAPTIVE,
    SURROGATE_SEED,
    AttackEntry,
    DataEntry,
    DefenseEntry,
    FileEntry,
    ModelEntry,
    Naming,
    Sweep,
)

_KINDS = {int: "a whole number", str: "text", bool: "true or false", dict: "a table", list: "a list"}
_LISTS = ("datasets", "models", "defenses", "threats", "attacks")
_COUNTS, _SWITCHES = ("batch_size", "eot", "votes", "max_queries"), ("checks", "deterministic")


class _Table:
    """A table of the file: each key is taken once, and what is left over is unknown."""

    def __init__(self, file: str, where: str, values: Mapping[str, Any]) -> None:
        self.file, self.where, self.values = file, where, dict(values)
        self.known: list[str] = []

    def place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, said: str) -> UserError:
        return UserError(f"{self.file}: {self.place(key)} {said}")

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, of this kind; the default where it is not there."""
        self.known.append(key)
        if key not in self.values:
            return default
        value = self.values.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"must be {_KINDS[kind]}, got {value!r}")
        return value

    def need(self, key: str, kind: type) -> Any:
        if key not in self.values:
            raise self.wrong(key, f"must be given: {_KINDS[kind]}")
        return self.take(key, kind)

    def whole(self, key: str, least: int, default: int | None = None) -> int | None:
        value: int | None = self.take(key, int, default)
        if value is not None and value < least:
            raise self.wrong(key, f"must be >= {least}, got {value}")
        return value

    def entries(self, key: str, short: str) -> Iterator[tuple[str, _Table]]:
        """Every entry of a list as a table; text stands for a table with only the key `short`."""
        given = self.need(key, list)
        if not given:
            raise self.wrong(key, "must have at least one entry, got none")
        for number, entry in enumerate(given, start=1):
            where = f"{self.place(key)}[{number}]"
            if isinstance(entry, str):
                entry = {short: entry}
            if not isinstance(entry, dict):
                raise UserError(f"{self.file}: {where} must be text or a table, got {entry!r}")
            yield where, _Table(self.file, where, entry)

    def end(self) -> None:
        for key in self.values:
            raise UserError(f"{self.file}: unknown key {self.place(key)!r}; {close_names(key, self.known)}")


def read_sweep(path: Path) -> Sweep:
    """The sweep that a TOML file states; docs/sweep.md has the keys.

    Raises UserError in one line, with file and key, for what cannot be read, is unknown, or cannot be run.
    """
    path = path.expanduser()
    try:
        values = tomllib.loads(_text(path).replace("\r\n", "\n"))
    except OSError as error:
        raise UserError(f"FILE: {str(path)!r} cannot be read ({error.strerror}); give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path.name}: no TOML: {error}") from None
    top = _Table(path.name, "", values)
    given: dict[str, Any] = {key: tuple(_READERS[key](top)) for key in _LISTS}
    sweep = Sweep(
        path=path,
        data=given["datasets"],
        models=given["models"],
        defenses=given["defenses"],
        threats=given["threats"],
        attacks=given["attacks"],
        seeds=_seeds(top),
        recipe=_recipe(top, "recipe"),
        files=tuple(_files(top)) if "files" in top.values else (),
        settings=_settings(top),
        fit_samples=top.whole("fit_samples", 1),
    )
    top.known.append("files")
    top.end()
    if sweep.name == "leaderboard":
        raise UserError(f"{path.name}: the table would have the leaderboard's own name; rename the file")
    return sweep


def _text(path: Path) -> str:
    """The text of a file in UTF-8, with a byte order mark or without. UserError for another encoding."""
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path.name}: no TOML: it is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path.name}: no TOML: line {line} is not UTF-8; save it as UTF-8") from None


def _data(top: _Table) -> Iterator[DataEntry]:
    samples = top.whole("samples", 1)
    for _, table in top.entries("datasets", "name"):
        name, size = table.need("name", str), table.whole("image_size", 1)
        names: str | None = table.take("class_names", str)
        yield DataEntry(name, table.whole("samples", 1, samples), size, None if names is None else parse_classes(names))
        table.end()


def _models(top: _Table) -> Iterator[ModelEntry]:
    for where, table in top.entries("models", "name"):
        yield _model(where, table)


def _model(where: str, table: _Table, seed: int | None = None) -> ModelEntry:
    name, weights = table.need("name", str), table.take("weights", str)
    own_seed = table.whole("seed", 0, seed)
    mean, std = (_numbers_or_name(table, key) for key in ("mean", "std"))
    table.end()
    with Naming(f"{table.file}: {where}"):
        model = ModelEntry(name, weights, own_seed, Normalization.parse(mean, std))
    with Naming(f"{table.file}: {where}.name"):
        find_source(model.name)
    return model


def _numbers_or_name(table: _Table, key: str) -> str | None:
    """A number, a list of numbers or a name, as `--mean` has it."""
    table.known.append(key)
    value = table.values.pop(key, None)
    return None if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _defenses(top: _Table) -> Iterator[DefenseEntry]:
    for where, table in top.entries("defenses", "use"):
        use = table.values.get("use")
        if isinstance(use, str):
            table.values["use"] = [] if use == "none" else [name.strip() for name in use.split(" + ")]
        names = table.need("use", list)
        if not all(isinstance(name, str) for name in names):
            raise table.wrong("use", f"must be a list of names, got {names!r}")
        options = dict(_flat(table.take("options", dict, {})))
        recipe = _recipe(table, "recipe")
        table.end()
        with Naming(f"{table.file}: {where}.use"):
            defense_classes(names)  # their order hangs on their options, which hang on the threat: told by the plan
        yield DefenseEntry(where, tuple(names), options, recipe)


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`trades.eps = 0.1` is in TOML a table in a table."""
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ",".join(map(str, value)) if isinstance(value, list) else value


def _threats(top: _Table) -> Iterator[Threat]:
    for where, table in top.entries("threats", "norm"):
        norm = table.need("norm", str)
        with Naming(f"{table.file}: {where}"):
            if " " in norm.strip():
                norm, _, text = norm.strip().partition(" ")
                table.values.setdefault("eps", text)
            eps = table.values.pop("eps", None)
            table.known.append("eps")
            table.end()
            yield make_threat(norm, eps)


def _attacks(top: _Table) -> Iterator[AttackEntry]:
    for where, table in top.entries("attacks", "name"):
        several = table.values.get("name")
        if isinstance(several, list) and several and all(isinstance(each, str) for each in several):
            table.values["name"] = " + ".join(several)
        name = table.need("name", str)
        options = dict(_flat(table.take("options", dict, {})))
        surrogates: tuple[ModelEntry, ...] = ()
        if "surrogates" in table.values:
            entries = table.entries("surrogates", "name")
            surrogates = tuple(_model(place, each, SURROGATE_SEED) for place, each in entries)
        table.known.append("surrogates")
        if any(each.strip().startswith(PREFIX) for each in name.split(" + ")) and not surrogates:
            raise table.wrong("surrogates", f"must be given for {name}: a list of models that make the images")
        norms = tuple(table.take("norms", list, []))
        if wrong := [norm for norm in norms if norm not in NORMS]:
            raise table.wrong("norms", f"must be of {', '.join(NORMS)}, got {wrong[0]!r}")
        table.end()
        if name == ADAPTIVE and (options or surrogates):
            raise UserError(f"{table.file}: {where}: {ADAPTIVE} has the options that each defense states; give none")
        yield AttackEntry(where, name, options, surrogates, norms)


def _files(top: _Table) -> Iterator[FileEntry]:
    for where, table in top.entries("files", "file"):
        file = Path(table.need("file", str))
        model, seed = table.need("model", str), table.whole("seed", 0, SURROGATE_SEED)
        table.end()
        if file.suffix != ".safetensors":
            raise table.wrong("file", f"must end in .safetensors, got {str(file)!r}")
        with Naming(f"{table.file}: {where}.model"):
            find_source(model)
        assert seed is not None
        yield FileEntry(file, model, seed)


def _seeds(top: _Table) -> tuple[int, ...]:
    seeds = top.take("seeds", list, [0])
    if not seeds or any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in seeds):
        raise top.wrong("seeds", f"must be a list of whole numbers >= 0, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise top.wrong("seeds", f"has one of them twice: {seeds!r}")
    return tuple(seeds)


def _settings(top: _Table) -> dict[str, Any]:
    said = {key: top.whole(key, 1) for key in _COUNTS} | {key: top.take(key, bool) for key in _SWITCHES}
    return {key: value for key, value in said.items() if value is not None}


def _recipe(table: _Table, key: str) -> dict[str, Any]:
    recipe = dict(table.take(key, dict, {}))
    if "seed" in recipe:
        raise table.wrong(f"{key}.seed", "is what seeds are for; leave it out")
    return recipe


_READERS = {"datasets": _data, "models": _models, "defenses": _defenses, "threats": _threats, "attacks": _attacks}
