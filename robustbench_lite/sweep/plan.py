"""What a sweep is made of, and its cells in the order in which they run; all that can be wrong is told here."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..perturbation import make_attack
from ..prepare import defense_classes, make_defenses
from ..recipe import recipe_for
from ..records.specification import eps_text, threat_text
from ..surrogate import Surrogate
from ..threat import Threat

if TYPE_CHECKING:
    from ..attack import Attack
    from ..defense import Defense
    from ..models import Normalization

ADAPTIVE = "adaptive"
# An option of a defense with this value is given the threat's own eps or norm.
OF_THREAT = "threat"
# Options of `rbl sweep`, which are no keys of its file.
_OF_THE_COMMAND = ("--data-dir", "--device", "--download", "--leaderboard", "--only", "--workers")
# Of a surrogate's training, where none is stated: independent of the networks under test.
SURROGATE_SEED = 1000


@dataclass(frozen=True)
class DataEntry:
    """A data set by name; samples: of its test split, class-balanced; None for all; class_names: in order."""

    name: str
    samples: int | None = None
    image_size: int | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ModelEntry:
    """A network by name; weights as for `rbl evaluate`; seed: of its training, None for that of the cell.

    normalize: put before it, as `--mean` and `--std` do.
    """

    name: str
    weights: str | None = None
    seed: int | None = None
    normalize: Normalization | None = None


@dataclass(frozen=True)
class DefenseEntry:
    """Defenses that stack in this order, with options as `--defense-option` has them; none for the bare network."""

    where: str
    use: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def classes(self) -> list[type[Defense]]:
        """The classes of the defenses."""
        return defense_classes(self.use)

    def pairs(self, threat: Threat) -> list[str]:
        """The options as KEY=VALUE; one that says "threat" has the eps or the norm of the threat."""
        return [f"{key}={_own(key, threat) if value == OF_THREAT else value}" for key, value in self.options.items()]


def _own(key: str, threat: Threat) -> Any:
    """The threat's eps or norm for the option of that name; for another what was written, which it then refuses."""
    return {"eps": threat.eps, "norm": threat.norm}.get(key.rpartition(".")[2], OF_THREAT)


@dataclass(frozen=True)
class AttackEntry:
    """An attack by name with its options, or several (`pgd + square`); norms: of the threats it is for, () for all."""

    where: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    surrogates: tuple[ModelEntry, ...] = ()
    norms: tuple[str, ...] = ()

    def made(self, threat: Threat) -> Attack:
        """The attack, its surrogates still to be trained."""
        promised = [Surrogate.promised(model.name) for model in self.surrogates]
        attack = make_attack(self.specs, self.options, threat, surrogates=promised)
        if attack.own_limits:
            raise UserError(f"attack {self.name} has limits of its own, and a sweep is over threats; leave it out")
        return attack

    @property
    def specs(self) -> list[str]:
        """The names of the attacks, of which there is mostly one."""
        return [name.strip() for name in self.name.split(" + ")]

    @property
    def label(self) -> str:
        """As a leaderboard writes it: `pgd steps=100`."""
        pairs = (f"{key}={eps_text(v) if isinstance(v, float) else v}" for key, v in self.options.items())
        return " ".join([self.name, *pairs])


@dataclass(frozen=True)
class FileEntry:
    """A file of weights that a defense names in its options, trained where it is not there."""

    file: Path
    model: str
    seed: int = SURROGATE_SEED


@dataclass(frozen=True, eq=False)
class Cell:
    """One run to be: everything that `rbl evaluate` is told."""

    data: DataEntry
    model: ModelEntry
    defense: DefenseEntry
    threat: Threat
    attack: AttackEntry
    seed: int

    @functools.cached_property
    def defenses(self) -> list[Defense]:
        """The defenses, made."""
        return make_defenses(self.defense.use, self.defense.pairs(self.threat))

    @property
    def network(self) -> tuple[Any, ...]:
        """What decides the network; cells that agree on it share one training."""
        pairs = tuple(self.defense.pairs(self.threat))
        recipe = tuple(self.defense.recipe.items())
        return self.data, self.model, self.defense.use, pairs, recipe, self.seed

    @property
    def training(self) -> tuple[Any, ...]:
        """What decides the training; bare networks behind different inference-time defenses share one."""
        from ..defense import TrainingDefense

        classes = self.defense.classes
        data, model, *defended, recipe, seed = self.network
        return data, model, *(defended if any(issubclass(c, TrainingDefense) for c in classes) else ()), recipe, seed

    @property
    def row(self) -> dict[str, Any]:
        """The cell in words, by the names of a leaderboard's columns."""
        return {
            "dataset": self.data.name,
            "model": self.model.name,
            "defense": " + ".join(cls.name for cls in self.defense.classes) or "none",
            "defense_options": " ".join(self.defense.pairs(self.threat)),
            "attack": self.attack.name,
            "norm": self.threat.norm,
            "eps": self.threat.eps,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        """The network, then what it is put to."""
        return f"{self.told_network}, {self.attack.label}, {threat_text(self.threat.norm, self.threat.eps)}"

    @property
    def told_network(self) -> str:
        """The network alone."""
        row = self.row
        named = " ".join(filter(None, (row["defense"], row["defense_options"])))
        return f"{row['model']} on {row['dataset']}, {named}, seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was stated.

    recipe: parts of every training's recipe but its seed, which is the cell's. settings: of every run, by the names
    of `Plan`: batch_size, eot, votes, checks, max_queries, deterministic. fit_samples: as for `rbl evaluate`.
    """

    path: Path
    data: tuple[DataEntry, ...]
    models: tuple[ModelEntry, ...]
    defenses: tuple[DefenseEntry, ...]
    threats: tuple[Threat, ...]
    attacks: tuple[AttackEntry, ...]
    seeds: tuple[int, ...] = (0,)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit_samples: int | None = None

    @property
    def name(self) -> str:
        """That of its file, and of the table made of it."""
        return self.path.stem

    def recipe_of(self, cell: Cell) -> dict[str, Any]:
        """The recipe that a cell's network is trained by."""
        seed = cell.seed if cell.model.seed is None else cell.model.seed
        return {**self.recipe, **cell.defense.recipe, "seed": seed}

    @functools.cached_property
    def cells(self) -> list[Cell]:
        """Every run to be: those of one network together, and bare networks first where they are stated first.

        Raises UserError, naming the file and the key, for what no training is needed to see.
        """
        found: dict[tuple[Any, ...], Cell] = {}
        for cell in self._combined():
            key = (cell.network, cell.threat, cell.attack.name, repr(dict(cell.attack.options)), cell.attack.surrogates)
            found.setdefault(key, cell)
        if not found:
            raise UserError(
                f"{self.path.name}: attacks: none is left for {', '.join(sorted({t.norm for t in self.threats}))}; "
                f"{ADAPTIVE} alone is none for the bare network, and norms says which threats an attack is for"
            )
        self._check_told_apart(found.values())
        return list(found.values())

    def _check_told_apart(self, cells: Iterable[Cell]) -> None:
        """Raise UserError for two networks that the table would take for one."""
        told: dict[tuple[Any, ...], Cell] = {}
        for cell in cells:
            row = cell.row
            key = (cell.data.samples, *(row[name] for name in row if name not in ("attack",)))
            first = told.setdefault(key, cell)
            if first.defense.use != cell.defense.use:
                names = " and ".join(" + ".join(each.defense.use) for each in (first, cell))
                raise UserError(f"{self.path.name}: {names} have one name, {row['defense']!r}; give one another")
            if first.network != cell.network:
                raise UserError(
                    f"{self.path.name}: {cell.told_network} is there twice, with other recipes, weights or "
                    "image sizes, which the table cannot tell apart; give each a file of its own"
                )

    def _combined(self) -> Iterator[Cell]:
        for data in self.data:
            for model in self.models:
                for defense in self.defenses:
                    for seed in self.seeds:
                        for threat in self.threats:
                            yield from self._attacked(data, model, defense, threat, seed)

    def _attacked(
        self, data: DataEntry, model: ModelEntry, defense: DefenseEntry, threat: Threat, seed: int
    ) -> Iterator[Cell]:
        from ..defense import TrainingDefense

        for attack in self.attacks:
            if attack.norms and threat.norm not in attack.norms:
                continue
            cell = Cell(data, model, defense, threat, attack, seed)
            with self.naming(f"{defense.where}.options", {"--defense": f"{defense.where}.use"}):
                made = self._made(cell)
            with self.naming(f"{defense.where}.recipe" if defense.recipe else "recipe"):
                training = [d for d in made if isinstance(d, TrainingDefense)]
                recipe_for(training, self.recipe_of(cell), argument="--train-option")
            own = attack.name == ADAPTIVE
            for each in _adaptive(made, attack) if own else (attack,):
                told = f"{each.where}, {ADAPTIVE} of {cell.row['defense']}" if own else each.where
                with self.naming(told):
                    each.made(threat)
                yield Cell(data, model, defense, threat, each, seed)

    def _made(self, cell: Cell) -> list[Defense]:
        """The cell's defenses; options that name a file which is still to be made are left out."""
        missing = [f"{entry.file}" for entry in self.files if not entry.file.exists()]
        pairs = [p for p in cell.defense.pairs(cell.threat) if not any(file in p for file in missing)]
        return make_defenses(cell.defense.use, pairs)

    def naming(self, where: str | None, elsewhere: Mapping[str, str] | None = None) -> Naming:
        """Within: what is wrong is told with the file and the key, and not with an option of the command line.

        where: None leaves alone what names none of the options that are elsewhere.
        """
        file = self.path.name
        places = {option: f"{file}: {place}" for option, place in (elsewhere or {}).items()}
        return Naming(None if where is None else f"{file}: {where}", places)


def _adaptive(defenses: list[Defense], entry: AttackEntry) -> list[AttackEntry]:
    """The attacks that are made for these defenses; none for the bare network."""
    return [AttackEntry(entry.where, d.adaptive, dict(d.adaptive_options), norms=entry.norms) for d in defenses]


class Naming:
    """A context in which a UserError is told with a place in front, unless it names an option of the command itself.

    elsewhere: the places of errors that name one of these options of the command line.
    """

    def __init__(self, place: str | None, elsewhere: Mapping[str, str] | None = None) -> None:
        self.place = place
        self.elsewhere = elsewhere or {}

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Put the place in front."""
        places = [place for place in (self.place, *self.elsewhere.values()) if place is not None]
        if not isinstance(error, UserError) or str(error).startswith(places[0].partition(":")[0] + ":"):
            return
        option = re.match(r"(--[a-z-]+):? |", str(error))
        assert option is not None
        place = self.elsewhere.get(option[1], self.place)
        if place is not None and option[1] not in _OF_THE_COMMAND:
            error.args = (f"{place}: {str(error)[option.end() :]}",)
