"""A sweep carried out cell by cell, each as `rbl evaluate` runs it; what is on the board is not run again."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import balanced_subset
from ..data_request import DataRequest
from ..errors import RblError, RecordError, UserError
from ..models.classes import aligned
from ..perturbation import make_attack
from ..plan import Plan, with_fit_data
from ..plan_record import specification_of
from ..plan_run import run_plan
from ..prepare import Untrained, defense_images, fit_images, prepare_model, recorded_defenses
from ..records.run import Run
from ..records.shards import sound_run
from ..records.specification import CostsRecord
from ..records.verdict import has_checks
from ..running import Interrupted
from ..surrogate import Surrogate
from .costs import forward_costs
from .plan import Cell, ModelEntry, Sweep

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..data import Dataset
    from ..loop import TrainingProgress
    from ..models import LoadedModel
    from ..result import Result
    from ..running import Progress

COSTS_IMAGES = 32


@contextlib.contextmanager
def _unseen(*_: object) -> Iterator[Callable[[Any], None]]:
    yield lambda _: None


@dataclass(frozen=True)
class Watch:
    """Who is told of a sweep while it runs; by default nobody.

    training, attacking: of a label (and a count of images), a context that gives what is told of the progress.
    done: told of every cell. stop: asked at every step of an attack.
    """

    note: Callable[[str], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None
    training: Callable[[str], AbstractContextManager[Callable[[TrainingProgress], None]]] = _unseen
    attacking: Callable[[str, int], AbstractContextManager[Callable[[Progress], None]]] = _unseen
    done: Callable[[Done], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Done:
    """What became of a cell: `ran`, `there` (its run was on the board) or `failed`, with the error in one line."""

    cell: Cell
    state: str
    file: Path | None = None
    error: str = ""


@dataclass
class Bench:
    """What the cells of a sweep share: the board, the machine, and what has been loaded."""

    sweep: Sweep
    leaderboard: Path
    device: str = "cpu"
    request: DataRequest = field(default_factory=DataRequest)
    watch: Watch = field(default_factory=Watch)
    train: bool = True

    def __post_init__(self) -> None:
        self._data: dict[Any, tuple[DataRequest, Dataset, Tensor]] = {}
        self._surrogates: dict[Any, LoadedModel] = {}
        self._network: tuple[Any, LoadedModel] | None = None
        self._costs: dict[Any, CostsRecord] = {}
        self._warned: set[str] = set()

    def data(self, cell: Cell) -> tuple[DataRequest, Dataset, Tensor]:
        """The cell's data set, and which of its images."""
        entry, models = cell.data, (cell.model, *cell.attack.surrogates)
        key = entry, tuple((model.name, model.weights) for model in models)
        if key not in self._data:
            request = dataclasses.replace(
                self.request, dataset=entry.name, image_size=entry.image_size, classes=entry.class_names
            )
            place = f"datasets, {entry.name}"
            with self.sweep.naming(place, {"--samples": f"{place}: samples", "--image-size": f"{place}: image_size"}):
                request = aligned(request, key[1])
                data = request.load()
                count = len(data) if entry.samples is None else entry.samples
                self._data[key] = request, data, balanced_subset(data.labels, count)
        return self._data[key]

    def network(self, cell: Cell) -> LoadedModel:
        """The cell's network, trained where it must be; the last one is kept."""
        if self._network is None or self._network[0] != cell.network:
            self._network = None
            where = f"models, {cell.model.name}"
            recipe = self.sweep.recipe_of(cell)
            made = self.prepared(cell, cell.model, recipe, cell.told_network, where, cell.defenses)
            self._network = cell.network, made
        return self._network[1]

    def surrogates(self, cell: Cell) -> list[Surrogate]:
        """The networks that a transfer attacks, bare."""
        for model in cell.attack.surrogates:
            key = cell.data, model
            if key not in self._surrogates:
                recipe = {**self.sweep.recipe, "seed": model.seed}
                label = f"surrogate {model.name} on {cell.data.name}, seed {model.seed}"
                self._surrogates[key] = self.prepared(cell, model, recipe, label, f"{cell.attack.where}.surrogates")
        return [Surrogate.of(self._surrogates[cell.data, model]) for model in cell.attack.surrogates]

    def prepared(
        self,
        cell: Cell,
        model: ModelEntry,
        recipe: dict[str, Any],
        label: str,
        where: str,
        defenses: Sequence[Any] = (),
    ) -> LoadedModel:
        """A network for the cell's data set, trained where it must be and may be; where: its place in the file."""
        request, data, _ = self.data(cell)
        places = {"--model": where, "--weights": f"{where}: weights", "--dataset": f"datasets, {cell.data.name}"}
        told = self.sweep.naming(None, {**places, "--defense": cell.defense.where})
        with told, self.watch.training(label) as progress:
            return prepare_model(
                model.name,
                request,
                data,
                weights=model.weights,
                defenses=defenses,
                recipe=recipe,
                device=self.device,
                progress=progress,
                may_train=self.train,
                note=self.watch.note,
                normalize=model.normalize,
            )

    def plan(self, cell: Cell) -> Plan:
        """The cell as a plan, which is what `rbl evaluate` makes of the same words."""
        request, data, index = self.data(cell)
        network = self.network(cell)
        made_by = recorded_defenses(network, cell.defenses)
        attack = make_attack(cell.attack.specs, cell.attack.options, cell.threat, surrogates=self.surrogates(cell))
        return Plan(
            model=network,
            data=data,
            index=index,
            attack=attack,
            threat=cell.threat,
            attack_options=cell.attack.options,
            defenses=[*made_by, *cell.defenses],
            defense_specs=[*(d.name for d in made_by), *cell.defense.use],
            seed=cell.seed,
            device=self.device,
            fit=fit_images(request, attack, cell.threat, self.sweep.fit_samples),
            learn_from=defense_images(request, cell.defenses),
            **self.sweep.settings,
        )

    def file(self, plan: Plan) -> Path:
        """Where the plan's run is, or will be."""
        now = datetime.datetime.now(datetime.UTC)
        return self.leaderboard / "runs" / f"{specification_of(with_fit_data(plan), now, {}).run_id()}.parquet"

    def is_trained(self, cell: Cell) -> bool:
        """Whether the cell's network is there, so that none has to be trained; only where the bench may not train."""
        assert not self.train
        try:
            self.network(cell)
        except Untrained:
            return False
        except UserError:
            if any(not entry.file.exists() for entry in self.sweep.files):
                return False  # a defense looks for a file that is still to be made
            raise
        return True

    def there(self, cell: Cell) -> Path | None:
        """The cell's run on the board; None where it is not there, or its networks are not trained."""
        try:
            file = self.file(self.plan(cell))
        except RblError:
            return None
        return file if is_complete(file, checked=self.checked) else None

    @property
    def checked(self) -> bool:
        """Whether the runs of this sweep have sanity checks."""
        return bool(self.sweep.settings.get("checks", True))

    def run(self, cell: Cell) -> Done:
        """The cell, run unless its run is there."""
        plan = self.plan(cell)
        file = self.file(plan)
        if is_complete(file, checked=self.checked):
            return Done(cell, "there", file)
        with self.watch.attacking(f"{plan.attack.name} on {cell.row['defense']}", len(plan.order)) as progress:
            result = run_plan(
                plan,
                leaderboard=self.leaderboard,
                progress=progress,
                stop=self.watch.stop,
                note=self.watch.note,
                warn=self._warn_once,
                before_write=lambda result: self._with_costs(cell, plan, result),
            )
        return Done(cell, "ran", result.file)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.watch.warn(text)

    def _with_costs(self, cell: Cell, plan: Plan, result: Result) -> Run:
        specification = result.run.specification
        if cell.network not in self._costs:
            x = plan.data.images(plan.index[:COSTS_IMAGES])
            ratio, passes = forward_costs(
                plan.defended(), self._bare(cell, plan), x, network=plan.model.module, device=self.device
            )
            known = specification.costs or CostsRecord()
            costs = dataclasses.replace(known, forward_ratio=round(ratio, 4), passes=passes * specification.votes)
            self._costs[cell.network] = costs
        changed = dataclasses.replace(specification, costs=self._costs[cell.network])
        return dataclasses.replace(result.run, specification=changed)

    def _bare(self, cell: Cell, plan: Plan) -> nn.Module:
        """The undefended network as it is built, untrained: what a forward pass takes does not depend on weights."""
        from ..models.build import build_source, find_source

        pretrained = cell.model.weights == "pretrained"
        source, shape = find_source(cell.model.name), plan.data.shape
        return build_source(source, n_classes=len(plan.data.classes), shape=shape, pretrained=pretrained, seed=0)


def is_complete(file: Path, *, checked: bool = False) -> bool:
    """Whether a whole and sound run is in the file, with sanity checks where these are wanted."""
    try:
        if not file.exists():
            return False
        found = sound_run(file)
    except RecordError:
        return False
    return found.specification.status == "complete" and (not checked or has_checks(found))


def run_sweep(bench: Bench, cells: Sequence[Cell]) -> list[Done]:
    """Run these cells of a sweep in order; one that fails is told and passed by.

    Raises Interrupted when the watch says stop, and UserError where the files that defenses name cannot be made.
    """
    make_files(bench, cells)
    done: list[Done] = []
    lost: dict[Any, str] = {}  # networks that could not be had
    for cell in cells:
        if bench.watch.stop():
            raise Interrupted(f"stopped after {len(done)} of {len(cells)} cells; the same command goes on")
        done.append(_settled(bench, cell, lost))
        bench.watch.done(done[-1])
    return done


def _settled(bench: Bench, cell: Cell, lost: dict[Any, str]) -> Done:
    try:
        if cell.network not in lost:
            try:
                bench.network(cell)
            except RblError as error:
                _no_interrupt(error)
                lost[cell.network] = str(error)
        if cell.network in lost:
            return Done(cell, "failed", error=lost[cell.network])
        return bench.run(cell)
    except RblError as error:
        _no_interrupt(error)
        return Done(cell, "failed", error=str(error))


def _no_interrupt(error: RblError) -> None:
    if isinstance(error, Interrupted):
        raise error


def make_files(bench: Bench, cells: Sequence[Cell]) -> None:
    """The files of weights that defenses of these cells name, each trained bare where it is not there."""
    from ..models.weights import save_weights

    for entry in bench.sweep.files:
        named = (cell for cell in cells if any(f"{entry.file}" in pair for pair in cell.defense.pairs(cell.threat)))
        cell = next(named, None)
        if cell is None or entry.file.exists():
            continue
        recipe = {**bench.sweep.recipe, "seed": entry.seed}
        made = bench.prepared(cell, ModelEntry(entry.model), recipe, entry.file.name, f"files, {entry.file}")
        save_weights(made.module, entry.file, model=entry.model, recipe=made.recipe or {}, history=made.history)
        bench.watch.note(f"{entry.file}: {entry.model}, seed {entry.seed}")
