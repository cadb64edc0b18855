"""Optimality: closed forms by hand, the areas it stands for, what never lowers it, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

import robustbench_lite as rbl
from robustbench_lite.curves import distance_curve
from robustbench_lite.errors import UserError
from robustbench_lite.optimality import comparable, compare, optimality
from robustbench_lite.records.run import Run
from robustbench_lite.records.specification import Specification

from .core.nets import binary, images, labels_of
from .core.test_minimal import nearing

Distances = npt.NDArray[np.float64]
INF = np.inf

# Few values, so that distances meet; the wrong samples and those that were not fooled among them.
DISTANCES = st_np.arrays(
    np.float64,
    st_np.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
    elements=st.one_of(st.sampled_from([0.0, INF, 1.0, 2.0]), st.floats(0, 10)),
)
quick = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        # D = 4: (3 + 2 + 0) for the best, (3 + 1 + 0) for the other
        ([[1, 2, 4], [1, 3, 4]], [1, 0.8]),
        # each the nearest once: best (1, 1), D = 1, so nothing tells them apart
        ([[1, 3], [3, 1]], [np.nan, np.nan]),
        # best (1, 1, 3), D = 3: 4 in all, 2 for each; what lies beyond D, however far, is as if not found
        ([[1, 4, 3], [4, 1, 99]], [0.5, 0.5]),
        # nobody fools the last; found by one alone, as far as D, is worth nothing more
        ([[1, 2, INF], [1, INF, INF]], [1, 1]),
        ([[1, 2, 3], [INF, INF, INF]], [1, 0]),
        # wrong samples count for none, also where only one sees them wrong
        ([[0, 1, 2], [0, 1.5, 2]], [1, 0.5]),
        ([[0, 1, 2], [9, 1.5, 2]], [1, 0.5]),
        ([[0, 0], [0, 0]], [np.nan, np.nan]),
        ([[INF], [INF]], [np.nan, np.nan]),
        ([[]], [np.nan]),
    ],
)
def test_by_hand(distances: list[list[float]], expected: list[float]) -> None:
    assert optimality(distances) == pytest.approx(expected, nan_ok=True)


def area(distances: Distances, end: float) -> float:
    """Under robust accuracy over distance from 0 to `end`, by the definition: a count on each piece between steps."""
    at = np.unique(np.concatenate([[0.0, end], distances[distances < end]]))
    left = [float((distances > middle).mean()) for middle in (at[1:] + at[:-1]) / 2]
    return float(np.dot(np.diff(at), left))


@quick
@given(DISTANCES)
def test_it_is_the_formula_of_the_paper(distances: Distances) -> None:
    # The paper's clean accuracy is one for all attacks.
    distances[:, (distances == 0).any(0)] = 0
    best = distances.min(0)
    shares = optimality(distances)
    if not np.isfinite(shares).all():
        assert len(set(best[np.isfinite(best) & (best > 0)])) < 2
        return
    end = best[np.isfinite(best)].max()
    least, most = area(best, end), float((best > 0).mean()) * end
    if most - least < 1e-6 * end:
        return  # a difference of nearly equal areas says nothing
    expected = [1 - (area(row, end) - least) / (most - least) for row in distances]
    assert shares == pytest.approx(expected, abs=1e-6)


@quick
@given(DISTANCES, st.randoms())
def test_it_lies_between_0_and_1_in_any_order(distances: Distances, random: Any) -> None:
    shares = optimality(distances)
    assert np.isnan(shares).all() or ((shares >= 0) & (shares <= 1)).all()
    attacks, samples = (random.sample(range(n), n) for n in distances.shape)
    assert optimality(distances[attacks]) == pytest.approx(shares[attacks], nan_ok=True)
    assert optimality(distances[:, samples]) == pytest.approx(shares, nan_ok=True)


@quick
@given(DISTANCES)
def test_the_nearest_everywhere_has_exactly_1_and_changes_no_other(distances: Distances) -> None:
    shares = optimality(distances)
    with_best = optimality(np.vstack([distances, distances.min(0)]))
    assert np.isnan(with_best[-1]) or with_best[-1] == 1
    assert with_best[:-1] == pytest.approx(shares, nan_ok=True)
    nothing = optimality(np.vstack([distances, np.full(distances.shape[1], INF)]))
    assert np.isnan(nothing[-1]) or nothing[-1] == 0


@quick
@given(DISTANCES, st.data())
def test_nearer_is_never_worse(distances: Distances, data: st.DataObject) -> None:
    best = distances.min(0)
    attack = data.draw(st.integers(0, distances.shape[0] - 1))
    share = data.draw(st_np.arrays(np.float64, distances.shape[1], elements=st.floats(0, 1)))
    before = optimality(distances)
    # Nearer than before, but not than the best: the others stay where they are.
    nearer = distances.copy()
    reached = np.isfinite(best)
    far = np.minimum(nearer[attack], 1e3)[reached]
    nearer[attack, reached] = np.minimum(
        nearer[attack, reached], best[reached] + share[reached] * (far - best[reached])
    )
    nearer[attack] = np.maximum(nearer[attack], best)
    after = optimality(nearer)
    assert np.isnan(before).all() or after[attack] >= before[attack] - 1e-9
    others = [a for a in range(len(distances)) if a != attack]
    assert after[others] == pytest.approx(before[others], nan_ok=True)
    # Nearer than the best, where that leaves the max distance: worse for the others, not for it.
    farthest = best[reached].max(initial=0.0)
    inner = reached & (0.5 * best > 0) & (best < farthest)
    nearer[attack, inner] = best[inner] * (0.5 + 0.5 * share[inner])
    below = optimality(nearer)
    assert np.isnan(after).all() or below[attack] >= after[attack] - 1e-9
    assert np.isnan(after).all() or (below[others] <= after[others] + 1e-9).all()


@pytest.mark.parametrize("distances", [[1.0, 2.0], [[-1.0]], [[np.nan]], np.zeros((0, 3))])
def test_what_is_no_table_of_distances_is_refused(distances: Any) -> None:
    with pytest.raises(UserError, match=r"distances must be \(attacks, samples\) of numbers >= 0"):
        optimality(distances)


def _run(*, norm: str = "l2", eps: float = 0.3, **options: Any) -> Run:
    model = binary().eval()
    x = images(40, low=0.2, high=0.8)
    y = labels_of(model, x)
    y[::8] = 1 - y[::8]
    return rbl.evaluate(model, x, y, attack=nearing(), norm=norm, eps=eps, checks=False, **options).run


@pytest.fixture(scope="module")
def near() -> Run:
    return _run()


@pytest.fixture(scope="module")
def far() -> Run:
    """The same attack, stopped before it comes to its nearest images."""
    return _run(max_queries=17)


def test_runs_stand_as_their_rows_say(near: Run, far: Run) -> None:
    first, second = compare([near, far])
    assert first.optimality == 1
    assert second.optimality is not None and 0 < second.optimality < 1
    assert first.clean_accuracy == second.clean_accuracy == 35 / 40
    assert first.found == second.found == 1
    for run, standing in ((near, first), (far, second)):
        rows = run.table.to_pandas()
        right = rows[rows.correct]
        assert standing.mean_distance == pytest.approx(right.distance_l2.mean())
        assert standing.median_distance == pytest.approx(rows.distance_l2.where(rows.correct, 0.0).median())
        assert (standing.forwards, standing.backwards) == (rows.forwards.mean(), rows.backwards.mean())
    assert compare([far, near]) == [second, first]


def test_it_is_the_area_between_the_curves_that_are_drawn(near: Run, far: Run) -> None:
    def area_of(run: Run) -> float:
        curve = distance_curve(run)
        at = np.clip(np.append(curve.at, end), None, end)
        return float(np.dot(np.diff(at), curve.accuracy))

    end = float(distance_curve(near).at[-1])
    best = area_of(near)
    assert compare([near, far])[1].optimality == pytest.approx(1 - (area_of(far) - best) / (35 / 40 * end - best))


def test_an_attack_that_finds_nothing_has_no_distance() -> None:
    one = _run()
    never = one.table.to_pandas()
    never.loc[never.correct, "adversarial_prediction"] = never.label
    none = dataclasses.replace(one, table=pa.Table.from_pandas(never, schema=one.table.schema, preserve_index=False))
    standing = compare([one, none])[1]
    assert (standing.optimality, standing.found) == (0, 0)
    assert standing.mean_distance is None and standing.median_distance is None
    assert compare([none])[0].optimality is None


def _with(run: Run, **changes: Any) -> Run:
    return dataclasses.replace(run, specification=dataclasses.replace(run.specification, **changes))


Change = Callable[[Run], Run]


def _model(run: Run) -> Run:
    return _with(run, model=dataclasses.replace(run.specification.model, sha256="f" * 64))


def _layout(run: Run) -> Run:
    return _with(run, model=dataclasses.replace(run.specification.model, layout_sha256="f" * 64))


def _dataset(run: Run) -> Run:
    return _with(run, dataset=dataclasses.replace(run.specification.dataset, fingerprint="e" * 64))


def _fixed(run: Run) -> Run:
    return _with(run, attack=dataclasses.replace(run.specification.attack, name="pgd", minimal=False))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_model, r"of the same model: \S+ f{12} here, \S+ \w{12} in "),
        (_layout, "of the same model: others than in "),
        (_dataset, r"of the same data set: \S+ e{12} here"),
        (lambda run: _with(run, votes=3), "of the same defense: others than in"),
        (lambda run: _with(run, target="next"), "of the same target: next here, none in "),
        (lambda run: _run(norm="linf"), "of the same norm: linf here, l2 in "),
        (lambda run: dataclasses.replace(run, table=run.table.slice(0, 30)), "same samples: 30 here, 40 in"),
        (lambda run: dataclasses.replace(run, table=run.table.take(list(range(39, -1, -1)))), "same samples: others"),
        (lambda run: _with(run, status="shard", shard=(1, 2)), "optimality needs a complete run, this one is a part"),
        (_fixed, "optimality needs a minimal attack, pgd looks within eps only"),
    ],
)
def test_what_cannot_be_compared_is_named_in_one_line(near: Run, change: Change, words: str) -> None:
    other = change(near)
    name = other.specification.run_id()
    with pytest.raises(UserError, match=words) as caught:
        compare([near, other])
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    # The two are no group; each has its own with one more like it, if it can be in any.
    assert comparable([near, other]) == []
    groups = comparable([near, other, near, other])
    assert groups in ([[0, 2]], [[0, 2], [1, 3]])


def test_random_targets_are_those_of_a_seed(near: Run) -> None:
    one, two = (_with(near, target="random", seed=seed) for seed in (0, 1))
    with pytest.raises(UserError, match="same target: random, seed 1 here, random, seed 0 in"):
        compare([one, two])


def test_what_is_the_attackers_own_choice_may_differ(near: Run, far: Run) -> None:
    wide = _run(eps=0.6, seed=4)
    assert compare([near, wide])[1].optimality == 1
    assert comparable([near, _fixed(near), far, wide]) == [[0, 2, 3]]


def test_no_run_is_refused() -> None:
    with pytest.raises(UserError, match="at least one run"):
        compare([])


def test_a_specification_is_told_by_what_it_holds(near: Run) -> None:
    again = Specification.from_json(near.specification.to_json())
    assert comparable([near, dataclasses.replace(near, specification=again)]) == [[0, 1]]
