from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.records import summarize, wilson

from .run_builder import defense, make_run


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(count: int, n: int, low: float, high: float) -> None:
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(case: tuple[int, int]) -> None:
    count, n = case
    low, high = wilson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    mirrored = wilson(n - count, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_of_nothing_and_of_nonsense() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="count"):
        wilson(3, 2)


def test_summary_of_a_run() -> None:
    run = make_run(defenses=(defense(), defense("random-noise")), warnings=("one", "two"), target="next")
    row = summarize(run)
    frame = run.table.to_pandas()
    assert row["n"] == 40
    assert row["defense"] == "bit-depth + random-noise"
    assert row["clean_accuracy"] == frame.correct.mean()
    assert row["robust_accuracy"] == (frame.correct & ~frame.success).mean()
    assert 0 < row["robust_accuracy"] < row["clean_accuracy"] < 1
    assert row["attack_success"] == frame.success.sum() / frame.attacked.sum()
    assert (row["forwards"], row["backwards"]) == (frame.forwards.sum(), frame.backwards.sum())
    assert row["warnings"] == 2


def test_a_failed_run_is_never_robust() -> None:
    row = summarize(make_run(status="failed", positions=range(7)))
    assert row["status"] == "failed"
    assert row["robust_accuracy"] is row["robust_high"] is row["clean_accuracy"] is row["attack_success"] is None
