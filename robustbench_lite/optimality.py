"""AttackBench's optimality: how near minimal attacks come to the nearest images that any of them found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .records.run import Run
from .records.summary import distances as run_distances
from .records.summary import summarize


def optimality(distances: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """For each attack: 1 where it is as near as the nearest attack on every sample, 0 where it finds nothing.

    Cina et al. 2024, "AttackBench: Evaluating Gradient-based Attacks for Adversarial Examples",
    arXiv:2404.19460: 1 - (area - best area) / (clean accuracy x max distance - best area), with the areas under
    robust accuracy over distance, from 0 to the max distance. The best curve takes for each sample the least
    distance that any of the attacks found.

    max distance: the largest finite distance of the best curve. It is where that curve ends: at robust accuracy 0
    if every sample was fooled by somebody, which the paper's definition needs, and at what nobody could fool if not.
    What an attack finds beyond it counts as not found. It moves with the attacks that are given, so a number
    compares those of one call and no others.

    Departures: samples that nobody fooled add the same to every area and leave the number as it is (the published
    script has no finite max distance for them); areas are those of the staircases, not of straight lines between
    their steps; a sample that any attack has at 0 (wrong before it begins) counts for none, also where a random
    defense lets another see it right. Written out over the samples that are left, with D the max distance, it is
    sum(D - min(distance, D)) / sum(D - best).

    distances: (attacks, samples), >= 0, 0 where the clean image is wrong and infinity where nothing was found.
    Returns (attacks,) in [0, 1]; NaN where all that was found is equally far, and no area is left to tell by.
    Raises UserError for distances of another shape, negative or NaN.

    >>> optimality([[1.0, 2.0, 4.0], [1.0, 3.0, 4.0], [np.inf, np.inf, np.inf]]).tolist()
    [1.0, 0.8, 0.0]
    """
    near = np.asarray(distances, np.float64)
    if near.ndim != 2 or not len(near) or not (near >= 0).all():
        raise UserError(f"distances must be (attacks, samples) of numbers >= 0, got shape {near.shape}")
    near = np.vstack([near, near.min(axis=0)])
    near = near[:, np.isfinite(near[-1]) & (near[-1] > 0)]
    farthest = near[-1].max(initial=0.0)
    # One expression for all, the best among them: equal distances give exactly 1.
    won = (farthest - np.minimum(near, farthest)).sum(axis=1)
    return won[:-1] / won[-1] if won[-1] > 0 else np.full(len(won) - 1, np.nan)


@dataclass(frozen=True)
class Standing:
    """One run beside others, in numbers; distances are in the run's norm.

    median_distance: over all samples, as on a leaderboard: a wrong one is at 0, one that was not fooled at
    infinity; None where that is the median. found: of the samples that are right, the share with an adversarial
    image anywhere; mean_distance: of those. None where no sample is right, or fooled. forwards, backwards: mean over
    all samples. optimality: None where `optimality` is NaN.
    """

    clean_accuracy: float
    median_distance: float | None
    mean_distance: float | None
    found: float | None
    forwards: float
    backwards: float
    optimality: float | None


def compare(runs: Sequence[Run]) -> list[Standing]:
    """Where each of several minimal attacks on the same model and samples stands, in the order given.

    Raises UserError, in one line that names the run and what differs, for a run that is not complete, not of a
    minimal attack, or of another model, defense, data set, norm, box or target, or other samples, than the first.
    What is the attacker's own choice (eps, options, seed, number of queries) may differ.
    """
    if not runs:
        raise UserError("RUN: expected at least one run, got none")
    scene, name = _scene(runs[0]), runs[0].specification.run_id()
    for run in runs:
        s = run.specification
        if s.status != "complete" or not run.table.num_rows:
            raise UserError(f"{s.run_id()}: optimality needs a complete run, this one is a part")
        if not s.attack.minimal:
            raise UserError(f"{s.run_id()}: optimality needs a minimal attack, {s.attack.name} looks within eps only")
        for (what, content, words), (_, others, other_words) in zip(_scene(run), scene, strict=True):
            if content != others:
                said = f"{words} here, {other_words} in {name}" if words != other_words else f"others than in {name}"
                raise UserError(f"{s.run_id()}: optimality compares runs of the same {what}: {said}")
    near = np.asarray([run_distances(run) for run in runs])
    return [_standing(*one) for one in zip(runs, near, optimality(near), strict=True)]


def comparable(runs: Sequence[Run]) -> list[list[int]]:
    """The places of those runs that `compare` takes together, where they are two or more; others are left out."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, run in enumerate(runs):
        if run.specification.status == "complete" and run.table.num_rows and run.specification.attack.minimal:
            groups.setdefault(tuple(content for _, content, _ in _scene(run)), []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def _scene(run: Run) -> list[tuple[str, str, str]]:
    """What an attack is up against, none of it its own doing: name, content and a word for each."""
    s = run.specification
    identity = s.identity()
    data = {key: value for key, value in identity["dataset"].items() if key != "samples"}
    # Only these are drawn anew with each seed.
    target = f"random, seed {s.seed}" if s.target == "random" else s.target or "none"
    box = f"[{s.threat.low:g}, {s.threat.high:g}]"
    rows = [run.table[name].to_pylist() for name in ("index", "content_hash", "label")]
    parts = [
        ("model", identity["model"], f"{s.model.name} {s.model.sha256[:12]}"),
        ("defense", [identity["defenses"], s.votes], f"{s.defense} {s.defense_options}".strip()),
        ("data set", data, f"{s.dataset.name} {s.dataset.fingerprint[:12]}"),
        ("norm", s.threat.norm, s.threat.norm),
        ("box", box, box),
        ("target", target, target),
        ("samples", rows, f"{len(rows[0]):,}"),
    ]
    return [(name, json.dumps(content, sort_keys=True), words) for name, content, words in parts]


def _standing(run: Run, near: npt.NDArray[np.float64], share: float) -> Standing:
    row = summarize(run)
    right = near[run.table["correct"].to_numpy()]
    fooled = right[np.isfinite(right)]
    return Standing(
        clean_accuracy=row["clean_accuracy"],
        median_distance=row["median_distance"],
        mean_distance=float(fooled.mean()) if len(fooled) else None,
        found=len(fooled) / len(right) if len(right) else None,
        forwards=row["forwards"] / row["n"],
        backwards=row["backwards"] / row["n"],
        optimality=None if np.isnan(share) else float(share),
    )
