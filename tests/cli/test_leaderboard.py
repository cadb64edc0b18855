"""`rbl leaderboard`: what is shown, chosen, written and found out."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .harness import Rbl, listing, rows

QUICK = ("--eps", "0.02", "--steps", "3")


@pytest.fixture
def board(evaluate: Rbl) -> dict[str, float]:
    """lb with three runs; their robust accuracy by name of the attack."""
    commands = {"pgd": QUICK, "fgsm": ("--eps", "0.02", "--attack", "fgsm"), "noise": ("--attack", "noise")}
    return {name: evaluate(*command, "--json").json["robust_accuracy"] for name, command in commands.items()}


@pytest.fixture
def show(rbl: Rbl) -> Rbl:
    """`rbl leaderboard show --leaderboard lb ARGUMENTS`."""
    return lambda *arguments: rbl("leaderboard", "show", "--leaderboard", "lb", *arguments)


def test_every_format_says_the_same(board: dict[str, float], show: Rbl) -> None:
    frames = {
        "json": [(row["attack"], row["robust_accuracy"]) for row in json.loads(show("--format", "json").out)],
        "csv": [
            (row["attack"], float(row["robust_accuracy"]))
            for row in csv.DictReader(io.StringIO(show("--format", "csv").out))
        ],
    }
    for found in frames.values():
        assert {(name.split()[0], share) for name, share in found} == set(board.items())
    markdown, rich = show("--format", "markdown").out, show().out
    assert markdown.count("\n| ") == 4  # three runs and the rule
    for text in (markdown, rich):
        for name, share in board.items():
            assert name in text and re.search(rf"\b{100 * share:.1f}\b", text)
    assert "[" in rich and "95 % Wilson" in rich


def test_rows_are_chosen_and_ordered(board: dict[str, float], show: Rbl) -> None:
    def attacks(*arguments: str) -> list[str]:
        return [row["attack"].split()[0] for row in json.loads(show(*arguments, "--format", "json").out)]

    assert attacks("--where", "attack ~ PGD") == ["pgd"]
    assert attacks("--where", "eps = 0.02", "--where", "attack != fgsm", "--where", "norm=linf") == ["pgd"]
    assert attacks("--where", "eps=8/255") == ["noise"]
    assert attacks("--where", "robust > 1") == []
    order = attacks("--sort", "-robust")
    assert [board[name] for name in order] == sorted(board.values(), reverse=True)
    assert [board[name] for name in attacks("--sort", "robust")] == sorted(board.values())


def test_no_row_is_explained(board: dict[str, float], show: Rbl) -> None:
    for style in ("rich", "csv"):
        said = show("--where", "norm = linf", "--where", "eps = 0.03", "--format", style)
        assert said.code == 0
        assert "no run of 3 matches: 'norm = linf' keeps 3 of 3; 'eps = 0.03' keeps 0 of 3, where eps is" in said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sort", "robst"), "--sort: unknown column 'robst'; did you mean robust"),
        (("--where", "robst<1"), "--where: unknown column 'robst'; did you mean robust"),
        (("--where", "robust"), "--where must be COLUMN OP VALUE with OP one of"),
        (("--where", "robust < many"), "--where robust must be a number"),
        (("--where", "robust < 50"), "--where robust must be a share in [0, 1], got 50; for 50 % give robust < 0.5"),
        (("--where", "norm=linf and robust<1"), "--where takes one condition, got 'norm=linf and robust<1'; give each"),
        (("--format", "xml"), "--format: unknown name 'xml'; known: csv, json, markdown, rich"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], told: str, board: dict[str, float], show: Rbl) -> None:
    assert told in show(*arguments).error


@pytest.mark.parametrize("command", ["show", "build", "verify"])
def test_a_folder_that_is_not_there_is_one_line(command: str, rbl: Rbl, folder: Path) -> None:
    assert "got 'nowhere' (nothing there)" in rbl("leaderboard", command, "--leaderboard", "nowhere").error
    assert "got 'nets.py' (a file)" in rbl("leaderboard", command, "--leaderboard", "nets.py").error
    assert not (folder / "nowhere").exists()


def test_merge_with_what_is_no_board_is_one_line(board: dict[str, float], rbl: Rbl) -> None:
    for other, told in (("nowhere", "OTHER must be a leaderboard folder"), ("lb", "must be another folder")):
        assert told in rbl("leaderboard", "merge", other, "--leaderboard", "lb").error


def test_an_empty_folder_is_an_empty_board(rbl: Rbl, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert rbl("leaderboard", "show", "--leaderboard", "empty", "--format", "json").out == "[]\n"
    assert rbl("leaderboard", "show", "--leaderboard", "empty").code == 0


def test_build_derives_the_table_anew(board: dict[str, float], rbl: Rbl) -> None:
    table = Path("lb/leaderboard.parquet")
    content = table.read_bytes()
    table.unlink()
    assert "not there; build it with rbl leaderboard build" in rbl("leaderboard", "verify", "--leaderboard", "lb").out
    assert rbl("leaderboard", "build", "--leaderboard", "lb").out == "lb/leaderboard.parquet: 3 runs\n"
    assert table.read_bytes() == content


def test_verify_confirms_and_finds_a_success_that_was_turned(board: dict[str, float], rbl: Rbl) -> None:
    said = rbl("leaderboard", "verify", "--leaderboard", "lb")
    assert (said.code, said.out) == (0, "lb: 3 runs, every number follows from the rows\n")
    file = next(path for path in Path("lb/runs").glob("*pgd*") if any(row["success"] for row in rows(path)))
    table = pq.read_table(file)
    turned = [False] * table.num_rows
    column = table.schema.get_field_index("success")
    pq.write_table(table.set_column(column, table.schema.field("success"), pa.array(turned)), file)
    before = listing(Path("lb"))
    said = rbl("leaderboard", "verify", "--leaderboard", "lb")
    assert said.code == 2 and said.err.startswith("error: lb: ") and "Traceback" not in said.err
    assert f"{file}: does not prove what it says: the rows are not those that were hashed" in said.out
    assert listing(Path("lb")) == before
    shown = rbl("leaderboard", "show", "--leaderboard", "lb", "--format", "json")
    assert len(json.loads(shown.out)) == 2 and "does not prove what it says" in shown.err
