"""The words for a defense, on numbers that are made up."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.records.summary import wilson
from robustbench_lite.sweep import Evidence, marks

BARE = Evidence(0.98, 0.10, 0.06, 0.16, plain=0.12)


def evidence(worst: float, n: int = 200, clean: float = 0.98, **more: object) -> Evidence:
    low, high = wilson(round(worst * n), n)
    return dataclasses.replace(Evidence(clean, worst, low, high), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (evidence(0.70), ("helps",)),
        (evidence(0.15), ("fails",)),  # exactly 5 points
        (evidence(0.02), ("fails",)),
        (evidence(0.20, n=20), ("unclear",)),
        (evidence(0.70, plain=0.80), ("helps",)),  # exactly 10 points
        (evidence(0.70, plain=0.81), ("helps", "flattered")),
        (evidence(0.10, plain=0.60), ("fails", "flattered")),
        (evidence(0.70, clean=0.93), ("helps",)),
        (evidence(0.70, clean=0.92), ("helps", "costs")),
        (evidence(0.70, reliable=False), ("helps", "unreliable")),
        (evidence(0.50, chance=0.45), ("fails",)),
        (evidence(0.51, chance=0.45), ("unclear",)),
        (evidence(0.60, chance=0.45), ("helps",)),
        (evidence(0.05, clean=0.5, plain=0.4, reliable=False), ("fails", "flattered", "costs", "unreliable")),
    ],
)
def test_each_word_has_its_reason(row: Evidence, words: tuple[str, ...]) -> None:
    assert marks(row, BARE) == words


def test_with_nothing_to_compare_there_is_no_word() -> None:
    assert marks(evidence(0.7), None) == ()


shares = st.integers(0, 100).map(lambda count: count / 100)


@given(shares, shares, shares, shares)
def test_who_keeps_more_is_never_called_worse(bare: float, worst: float, more: float, chance: float) -> None:
    ranks = {"fails": 0, "unclear": 1, "helps": 2}
    lower, higher = sorted((worst, more))
    words = [marks(evidence(share, chance=chance), evidence(bare))[0] for share in (lower, higher)]
    assert ranks[words[0]] <= ranks[words[1]]
    assert marks(evidence(bare), evidence(bare))[0] == "fails"
