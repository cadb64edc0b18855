"""An independent pass over the saved images of a run: its own plain torch and numpy, nothing of the engine.

Everything that a row claims of its two images is computed again from the images and the network alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import one_hot

from .defense import InferenceDefense, wrap_all
from .errors import UserError
from .examples import Examples, load_examples
from .files import sha256_file
from .fitting import FitData
from .foreign import ask
from .models.identity import state_sha256
from .network import exact_float32, frozen
from .options import option_types
from .records.check import check_run
from .records.run import Run
from .registry import guard, source_hash

DRAWS = 64  # of a randomised network, at least; four times the votes of the run where that is more
SLACK = 1e-9  # of a distance, for the rounding of sums
# Two top logits closer than this, relative to the largest, may change places with the batch size or the device.
ROUNDING = 1e-5

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reverification:
    """What the pass found.

    rows: of the run; checked: rows whose images were there. clean, adversarial, success: checked rows whose
    clean prediction, adversarial prediction and verdict (goal reached, inside ball and box) came out as
    recorded. successes: successes that the run claims; confirmed: those of them that came out.
    near_ties: disagreements of a prediction that rounding explains, no faults. draws: 1, or for a
    randomised network how many fresh draws the mean logits were taken over; disagreements are then
    counted and are no faults.
    """

    rows: int
    checked: int
    clean: int
    adversarial: int
    success: int
    successes: int
    confirmed: int
    near_ties: int
    draws: int
    faults: tuple[str, ...]

    @property
    def randomized(self) -> bool:
        """Whether verdicts were compared over fresh randomness, where agreement is reported, not demanded."""
        return self.draws > 1


def reverify(
    run: Run,
    examples_path: Path,
    module: nn.Module,
    *,
    defenses: Sequence[InferenceDefense] = (),
    learn_from: FitData | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    draws: int | None = None,
) -> Reverification:
    """Check every row of `run` against its saved images and the network, from nothing but these.

    module: the bare network, from pixels (N, C, H, W) in [0, 1] to logits (N, K); `defenses` stand before
    it in this order, and learn what they learn from `learn_from`. For each row: the SHA-256 of both images, ball and
    box (float64 distances), both predictions (float32, evaluation mode), the verdict. For the whole: the run's own
    rules (`check_run`), the SHA-256 of the weights and of the file of examples, the defenses. Faults are one line each.
    Module and global random state are left as they were found.

    Raises RecordError for a file of examples that cannot be read, UserError where the network cannot take
    the images, PluginError where it raises.
    """
    examples = load_examples(examples_path)
    faults = [f"the run: {fault}" for fault in check_run(run)]
    faults += _identity_faults(run, examples, examples_path, module=module, defenses=defenses)
    faults += _learning_faults(run, learn_from)
    pairs, more = _match(run, examples)
    faults += more
    if pairs is None:
        return Reverification(run.table.num_rows, 0, 0, 0, 0, _count(run, "success"), 0, 0, 1, tuple(faults))
    faults += [*_saved_faults(pairs), *_image_faults(run, pairs)]
    count = _draws(run, draws)
    network = wrap_all(module, defenses, None if learn_from is None else (learn_from.x, learn_from.y)).to(device)
    asked: dict[str, Any] = {"device": device, "batch_size": batch_size, "draws": count}
    asked["hard_votes"] = any(d.votes is not None for d in defenses)
    clean = _predict(network, pairs.x, **asked)
    moved = _predict(network, pairs.adversarial, **asked)
    return _compare(run, pairs, clean=clean, moved=moved, draws=count, faults=faults)


@dataclass(frozen=True)
class _Pairs:
    """The checked rows of a run as numpy columns, what the file of examples says of them, and their images."""

    rows: dict[str, npt.NDArray[Any]]
    saved: dict[str, npt.NDArray[Any]]
    x: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]
    distances: dict[str, npt.NDArray[np.float64]]

    @property
    def index(self) -> Ints:
        return self.rows["index"]


def _draws(run: Run, draws: int | None) -> int:
    specification = run.specification
    if specification.votes == 1 and not any(d.randomized for d in specification.defenses):
        return 1
    return draws or max(DRAWS, 4 * specification.votes)


# -- what is compared --------------------------------------------------------------------------------


def _identity_faults(
    run: Run, examples: Examples, path: Path, *, module: nn.Module, defenses: Sequence[InferenceDefense]
) -> Iterator[str]:
    specification = run.specification
    found = state_sha256(module)
    if found != specification.model.sha256:
        yield f"the weights hash to {found[:12]}, the run's model to {specification.model.sha256[:12]}"
    if examples.run_id != specification.run_id():
        yield f"the examples are of run {examples.run_id!r}, not of {specification.run_id()!r}"
    recorded = specification.examples
    if recorded is not None and sha256_file(path) != recorded.sha256:
        yield f"the file {Path(path).name} is not the one the run names (SHA-256)"
    wanted = [(d.name, d.resolved, d.source_sha256) for d in specification.defenses if d.kind == "inference"]
    given = [(d.name, {n: getattr(d, n) for n in option_types(type(d))}, _foreign_hash(d)) for d in defenses]
    for item, part in enumerate(("defenses", "options of the defenses", "sources of the defenses")):
        ours, theirs = [entry[item] for entry in given], [entry[item] for entry in wanted]
        if ours != theirs:
            yield f"{part}: the run was made with {_list(theirs)}, this pass with {_list(ours)}"
            return


def _learning_faults(run: Run, learn_from: FitData | None) -> Iterator[str]:
    wanted = {d.fit["sha256"] for d in run.specification.defenses if d.fit is not None}
    if wanted and (learn_from is None or {learn_from.record["sha256"]} != wanted):
        yield "the images that a defense learned from are not those of the run (SHA-256)"


def _foreign_hash(defense: InferenceDefense) -> str | None:
    kind = type(defense)
    return None if kind.__module__.startswith("robustbench_lite.") else source_hash(kind)


def _list(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _match(run: Run, examples: Examples) -> tuple[_Pairs | None, list[str]]:
    """The rows of the run that the examples hold, matched by index, and what is wrong with the match."""
    columns = {name: _numpy(run.table[name]) for name in run.table.column_names}
    where: dict[int, int] = {}
    for position, index in enumerate(examples.index.tolist()):
        where.setdefault(index, position)
    kept = np.array([index in where for index in columns["index"].tolist()], bool)
    faults = [
        *_fault("not among the examples", columns["index"], ~kept),
        *_fault("examples that are no row of the run", examples.index, ~np.isin(examples.index, columns["index"])),
    ]
    if len(where) < len(examples.index):
        faults.append(f"the examples hold an index twice: {len(examples.index)} rows, {len(where)} indices")
    shape = tuple(run.specification.dataset.shape)
    if examples.images.shape[1:] != shape:
        return None, [*faults, f"the examples are images of {examples.images.shape[1:]}, the run's are of {shape}"]
    if not kept.any():
        return None, faults
    rows = {name: column[kept] for name, column in columns.items()}
    at = np.array([where[index] for index in rows["index"].tolist()], np.int64)
    saved = {
        "label": examples.labels[at],
        "prediction": examples.prediction[at],
        "adversarial_prediction": examples.adversarial_prediction[at],
        "success": examples.success[at],
    }
    x, adversarial = examples.images[at], examples.adversarial[at]
    return _Pairs(rows, saved, x, adversarial, _distances(x, adversarial)), faults


def _numpy(column: Any) -> npt.NDArray[Any]:
    """A column as numpy has it: null is None in text, NaN in float64, -1 in int64."""
    kind = str(column.type)
    if column.null_count and kind == "int64":
        column = column.fill_null(-1)
    array: npt.NDArray[Any] = column.to_numpy()
    return array


def _saved_faults(pairs: _Pairs) -> Iterator[str]:
    """What the file of examples says beside the images must be what the run says."""
    for name, saved in pairs.saved.items():
        yield from _fault(f"the examples' {name} is not that of the run", pairs.index, saved != pairs.rows[name])


def _image_faults(run: Run, pairs: _Pairs) -> Iterator[str]:
    rows, index, attacked = pairs.rows, pairs.index, pairs.rows["attacked"]
    clean, moved = _hashes(pairs.x) != rows["content_hash"], _hashes(pairs.adversarial) != rows["adversarial_hash"]
    yield from _fault("the clean image is not the recorded one (SHA-256)", index, clean)
    yield from _fault("the adversarial image is not the recorded one (SHA-256)", index, attacked & moved)
    changed = (pairs.x != pairs.adversarial).reshape(len(index), -1).any(1)
    yield from _fault("not attacked, but the image was changed", index, ~attacked & changed)
    yield from _fault("the clean image leaves the box", index, _outside_box(run, pairs.x))
    yield from _fault("the adversarial image leaves the box", index, _outside_box(run, pairs.adversarial))
    norm = run.specification.threat.norm
    excess = pairs.distances[norm] - rows["eps"]
    # The nearest image that a minimal attack found may lie farther; it is then no success.
    beyond = ~_in_ball(run, pairs) & (rows["success"] | (not run.specification.attack.minimal))
    yield from _fault(f"the adversarial image is beyond eps in {norm} (by up to {excess.max():.2g})", index, beyond)
    for name, found in pairs.distances.items():
        recorded = np.asarray(rows[f"distance_{name}"], float)
        different = attacked & ~(np.abs(found - recorded) <= 1e-6 * (1 + np.abs(found)))
        yield from _fault(f"distance_{name} is not that of the images", index, different)


def _compare(
    run: Run, pairs: _Pairs, *, clean: tuple[Ints, Mask], moved: tuple[Ints, Mask], draws: int, faults: list[str]
) -> Reverification:
    """Predictions and verdicts as computed here, `clean` and `moved` (prediction, tie), against those of the rows."""
    (prediction, tie), (adversarial, moved_tie) = clean, moved
    rows, inside = pairs.rows, _in_ball(run, pairs) & ~_outside_box(run, pairs.adversarial)
    wrong = (adversarial != rows["label"]) & (adversarial < run.specification.dataset.classes)  # and not rejected
    goal = wrong if run.specification.target is None else adversarial == rows["target"]
    success = (prediction == rows["label"]) & rows["attacked"] & goal & inside
    agrees = {
        "clean": prediction == rows["prediction"],
        "adversarial": adversarial == rows["adversarial_prediction"],
        "success": success == rows["success"],
    }
    # A tie excuses a prediction, never an image outside the ball.
    excused = {"clean": tie, "adversarial": moved_tie, "success": (tie | moved_tie) & inside}
    index, claimed = pairs.index, rows["success"]
    if draws == 1:
        broken = {name: ~agrees[name] & ~excused[name] for name in agrees}
        faults += [
            *_fault("the clean prediction is not the recorded one", index, broken["clean"]),
            *_fault("the adversarial prediction is not the recorded one", index, broken["adversarial"]),
            *_fault("a success that is none", index, broken["success"] & claimed),
            *_fault("no success recorded, but the final image is one", index, broken["success"] & ~claimed),
        ]
    else:
        faults += _fault("a success outside ball or box", index, claimed & ~inside)
    near = np.zeros(len(index), bool)
    for name in agrees if draws == 1 else ():
        near |= ~agrees[name] & excused[name]
    return Reverification(
        rows=run.table.num_rows,
        checked=len(index),
        clean=int(agrees["clean"].sum()),
        adversarial=int(agrees["adversarial"].sum()),
        success=int(agrees["success"].sum()),
        successes=_count(run, "success"),
        confirmed=int((claimed & success).sum()),
        near_ties=int(near.sum()),
        draws=draws,
        faults=tuple(faults),
    )


# -- what is computed --------------------------------------------------------------------------------


def _predict(
    network: nn.Module,
    images: npt.NDArray[np.float32],
    *,
    device: str,
    batch_size: int,
    draws: int,
    hard_votes: bool = False,
) -> tuple[Ints, Mask]:
    """The class of each image by the mean of `draws` logits, or by votes, and whether rounding could change it."""

    def said(x: torch.Tensor) -> torch.Tensor:
        logits = _logits(network, x)
        return one_hot(logits.argmax(1), logits.shape[1]).float() if hard_votes else logits

    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    predictions, ties = [], []
    with exact_float32(), frozen(network), torch.no_grad(), torch.random.fork_rng(devices):
        torch.seed()  # fresh: not the randomness that the run was decided by
        for first in range(0, len(images), batch_size):
            x = torch.from_numpy(images[first : first + batch_size]).to(device)
            total = said(x)
            for _ in range(draws - 1):
                total = total + said(x)
            mean = (total / draws).double().cpu()
            top = mean.topk(2, dim=1).values
            predictions.append(mean.argmax(1))
            ties.append(top[:, 0] - top[:, 1] <= ROUNDING * (1 + mean.abs().amax(1)))
    return torch.cat(predictions).numpy(), torch.cat(ties).numpy()


def _logits(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        logits = ask(network, x)
    except UserError:
        raise
    except Exception as error:
        raise guard(f"--model: the network, given images of shape {tuple(x.shape)},", error) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"--model: expected logits of shape ({len(x)}, K), got {came}; give the run's own network")
    return logits.float()


def _hashes(images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images], object)


def _distances(x: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
    """Distances of each pair of images in every norm, in float64, one pair at a time to save memory."""
    found = np.zeros((4, len(x)))
    # Numbers that are none are what the rules look for, not a reason to warn.
    with np.errstate(all="ignore"):
        for row, (one, two) in enumerate(zip(x, other, strict=True)):
            size = np.abs(two.astype(np.float64) - one.astype(np.float64)).ravel()
            found[:, row] = size.max(initial=0.0), np.sqrt(size @ size), size.sum(), np.count_nonzero(size)
    return dict(zip(("linf", "l2", "l1", "l0"), found, strict=True))


def _outside_box(run: Run, images: npt.NDArray[np.float32]) -> Mask:
    threat = run.specification.threat
    inside = (images >= threat.low) & (images <= threat.high)
    return np.asarray(~inside.reshape(len(images), -1).all(1))


def _in_ball(run: Run, pairs: _Pairs) -> Mask:
    return np.asarray(pairs.distances[run.specification.threat.norm] <= pairs.rows["eps"] * (1 + SLACK))


def _count(run: Run, name: str) -> int:
    return int(np.count_nonzero(run.table[name].to_numpy()))


def _fault(rule: str, index: Ints, broken: Mask) -> Iterator[str]:
    """One line for a rule that rows break: how many, and the first of them by index."""
    count = int(np.count_nonzero(broken))
    if count:
        first = ", ".join(str(i) for i in index[broken][:3])
        yield f"{rule}: {count} {'row' if count == 1 else 'rows'}, index {first}{', ...' if count > 3 else ''}"
