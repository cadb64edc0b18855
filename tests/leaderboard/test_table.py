from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from robustbench_lite.errors import UserError
from robustbench_lite.leaderboard import build, kept_by_each, select, to_csv, to_json, to_markdown, to_rich
from robustbench_lite.records import AttackRecord, ModelRecord, ThreatRecord, settle

from ..records.run_builder import defense, make_run

TEXT = ["model", "defense", "dataset", "attack", "threat"]
HEADINGS = [*TEXT, "n", "clean", "robust", "forwards", "backwards", "verdict"]


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("board")
    for run in (
        make_run(),
        make_run(defenses=(defense(),), threat=ThreatRecord(norm="linf", eps=0.3), warnings=("odd",)),
        make_run(threat=ThreatRecord(norm="l2", eps=0.5), target="next", data_seed=3),
        make_run(status="failed", positions=range(9), model=ModelRecord(name="mlp[red]|", sha256="c", parameters=3)),
    ):
        settle(folder, run)
    return build(folder)[0]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ([], 4),
        (["eps=8/255"], 2),
        (["eps == 0.3"], 1),
        (["eps!=8/255"], 2),
        (["eps<=8/255"], 2),
        (["eps>8/255"], 2),
        (["eps >= 0.3", "norm=linf"], 1),
        (["defense ~ BIT"], 1),
        (["defense~bit", "norm = l2"], 0),
        (["model=small-cnn"], 3),
        (["target=none"], 3),
        (["target!=none"], 1),
        (["target=next"], 1),
        (["target!=next"], 3),
        (["target~e"], 1),
        (["robust_accuracy>=0"], 3),
        (["robust<=1"], 3),
        (["robust_accuracy=none"], 1),
        (["status=failed"], 1),
        (["started>2025"], 4),
        (["n<40"], 1),
        (["robust<=100%"], 3),
        (["robust >= 0 %", "Robust Accuracy <= 100 %"], 3),
        (["robust-low >= 0"], 3),
        (["EPS = 0.3"], 1),
        (["model='small-cnn'"], 3),
        (['norm == "l2"'], 1),
        (["norm = \u2018l2\u2019"], 1),
        (["defense_options="], 4),
        (["attack_options = steps and more"], 0),
    ],
)
def test_where(frame: pd.DataFrame, where: list[str], count: int) -> None:
    assert len(select(frame, where)) == count


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("robust_acuracy>0", "robust_accuracy"),
        ("nonsense", "COLUMN OP VALUE"),
        ("eps", "COLUMN OP VALUE"),
        ("eps=large", "eps must be a number"),
        ("eps~3", "~ is for text"),
        ("eps=1/0", "eps must be a number"),
        ("robust < 50", "robust must be a share in [0, 1], got 50; for 50 % give robust < 0.5"),
        ("clean_accuracy>=99.5", "for 99.5 % give clean_accuracy >= 0.995"),
        ("attack_success > 2", "attack_success must be a share in [0, 1], got 2; for 2 % give attack_success > 0.02"),
        ("robust > 150", "robust must be a share in [0, 1], got 150"),
        ("robust > -1", "robust must be a share in [0, 1], got -1"),
        ("robust < 150%", "robust must be a share in [0, 1], got 150%"),
        ("robust < half%", "robust must be a number"),
        ("eps < 50%", "% is for shares, such as robust, and eps is none"),
        ("attack > 5", "> is for numbers, and attack is text; use = != or ~"),
        ("model <= small", "<= is for numbers, and model is text"),
        ("norm = linf and robust < 0.5", "takes one condition"),
        ("robust < 0.5, norm = linf", "takes one condition"),
        ("norm=linf && eps=0.3", "takes one condition"),
        ("norm = linf or norm = l2", "conditions cannot be joined by 'or'"),
        ("norm=linf || norm=l2", "conditions cannot be joined by 'or'"),
        ("robust =< 0.5", "COLUMN OP VALUE"),
        ("robust === 1", "COLUMN OP VALUE"),
        ("robust <> 1", "COLUMN OP VALUE"),
        ("0.5 > robust", "the column comes first: robust < 0.5"),
        ("8/255 = eps", "the column comes first: eps = 8/255"),
        ("0.2 < robust < 0.5", "COLUMN OP VALUE"),
        ("threat = linf", "unknown column 'threat'"),
    ],
)
def test_a_condition_that_cannot_be_read(frame: pd.DataFrame, where: str, words: str) -> None:
    with pytest.raises(UserError, match="--where") as caught:
        select(frame, [where])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verdict_is_its_first_word_or_the_whole(frame: pd.DataFrame) -> None:
    whole = "unreliable: the gradient is zero"
    told = frame.assign(verdict=["reliable", whole, "reliable", ""])
    for where, count in (("unreliable", 1), (whole, 1), ("reliable", 2), ("gradient", 0)):
        assert len(select(told, [f"verdict = {where}"])) == count
        assert len(select(told, [f"verdict != {where}"])) == 4 - count


def test_what_a_condition_leaves_is_told(frame: pd.DataFrame) -> None:
    assert kept_by_each(frame, ["norm = linf", "eps = 0.03", "n > 5"]) == [
        "'norm = linf' keeps 3 of 4",
        "'eps = 0.03' keeps 0 of 3, where eps is 8/255 or 0.3",
    ]
    assert kept_by_each(frame, ["attack = PGD"])[0].endswith(f"where attack is {frame.attack.iloc[0]}")
    assert kept_by_each(frame, ["median_distance < 3"])[0].endswith("where median_distance is missing")
    many = frame.assign(forwards=[10, 20, 30, 40]).iloc[[0, 1, 2, 3, 3]].assign(forwards=[10, 20, 30, 40, 50])
    assert kept_by_each(many, ["forwards < 10"]) == ["'forwards < 10' keeps 0 of 5, where forwards is 10 to 50"]


def test_sort_either_way_with_missing_values_last(frame: pd.DataFrame) -> None:
    up = select(frame, [], "robust_accuracy").robust_accuracy
    down = select(frame, [], "-robust").robust_accuracy
    assert up.isna().tolist() == down.isna().tolist() == [False] * 3 + [True]
    assert up[:3].tolist() == sorted(up[:3])
    assert down[:3].tolist() == sorted(up[:3], reverse=True)
    assert select(frame, [], "n").run_id.tolist()[1:] == frame[frame.n == 40].run_id.tolist()
    with pytest.raises(UserError, match=r"--sort.*forwards"):
        select(frame, [], "forward")


def test_select_leaves_the_frame_as_it_was(frame: pd.DataFrame) -> None:
    before = frame.copy()
    select(frame, ["eps=0.3"], "-n")
    pd.testing.assert_frame_equal(frame, before)


def test_json_is_strict_and_numbers_are_numbers(frame: pd.DataFrame) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    rows = json.loads(to_json(frame), parse_constant=refuse)
    assert [row["run_id"] for row in rows] == frame.run_id.tolist()
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["robust_accuracy"] is None
    assert failed["target"] is None
    whole = next(row for row in rows if row["eps"] == 0.3)
    assert whole["robust_accuracy"] == frame[frame.eps == 0.3].robust_accuracy.item()
    assert isinstance(whole["forwards"], int)
    assert json.loads(to_json(select(frame, ["n=0"]))) == []


def test_csv_keeps_every_digit(frame: pd.DataFrame) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(frame))))
    assert list(rows[0]) == frame.columns.tolist()
    for row, eps, robust in zip(rows, frame.eps, frame.robust_accuracy, strict=True):
        assert float(row["eps"]) == eps
        assert row["robust_accuracy"] == "" if pd.isna(robust) else float(row["robust_accuracy"]) == robust


def test_markdown_shows_shares_in_percent_with_intervals(frame: pd.DataFrame) -> None:
    row = frame[frame.eps == 0.3].iloc[0]
    lines = to_markdown(select(frame, ["eps=0.3"])).splitlines()
    assert [name.strip() for name in lines[0].split("|")[1:-1]] == HEADINGS
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[:6] == ["small-cnn", "bit-depth", "digits", "pgd steps=5", "linf 0.3", "40"]
    low, high = 100 * row.robust_low, 100 * row.robust_high
    assert cells[7] == f"{100 * row.robust_accuracy:.1f} [{low:.1f}, {high:.1f}]"
    assert float(cells[8]) == pytest.approx(row.forwards / row.n, abs=0.05)
    assert cells[10] == "ok, 1 warning"
    assert "mean per sample" in lines[-1]


def test_markdown_of_a_failed_run_claims_nothing(frame: pd.DataFrame) -> None:
    line = to_markdown(select(frame, ["status=failed"])).splitlines()[2]
    assert line.startswith("| mlp[red]\\| | none | digits | pgd steps=5 | linf 8/255 | 9 | - | - |")
    assert line.endswith("| failed |")


def test_limits_of_its_own_are_no_norm(tmp_path: Path) -> None:
    """The whole box, which is what the threat is then, would read as the hardest of all."""
    spatial = AttackRecord(name="spatial", access="label", own_limits=True)
    settle(tmp_path, make_run(attack=spatial, threat=ThreatRecord(norm="linf", eps=1.0)))
    settle(tmp_path, make_run(threat=ThreatRecord(norm="linf", eps=1.0)))
    board = build(tmp_path)[0]
    for attack, words in (("spatial", "| spatial | own limits |"), ("pgd", "| pgd steps=5 | linf 1 |")):
        assert words in to_markdown(select(board, [f"attack={attack}"]))
    assert list(select(board, ["norm=linf"]).attack) == ["pgd"]
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(to_rich(board))
    assert "own limits" in console.file.getvalue()  # type: ignore[attr-defined]


def test_targets_are_told_apart(frame: pd.DataFrame) -> None:
    assert "| pgd steps=5 target=next |" in to_markdown(frame)


@pytest.mark.parametrize("width", [100, 200])
def test_rich_table_is_whole_in_100_columns(frame: pd.DataFrame, width: int) -> None:
    long = frame.assign(model="timm:vit_small_patch16_224", defense="adversarial-training + bit-depth", n=10_000)
    for rows in (frame, long):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(to_rich(rows))
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue()
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown
        for row in rows[rows.status == "complete"].to_dict("records"):
            assert f"[{100 * row['robust_low']:.1f}, {100 * row['robust_high']:.1f}]" in shown
        assert [heading for heading in HEADINGS if heading not in shown] == []
        squeezed = "".join(shown.split())
        assert rows.verdict[0] in squeezed
        assert str(rows.n[0]) in squeezed


def test_an_empty_table_is_a_table(frame: pd.DataFrame) -> None:
    nothing = select(frame, ["n=0"])
    assert to_rich(nothing).row_count == 0
    assert len(to_markdown(nothing).splitlines()) == 4
    assert to_csv(nothing).strip() == ",".join(frame.columns)
