"""Certificates on disk: they prove themselves, stand beside runs, and a false one stops whatever meets it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustbench_lite.errors import RecordError
from robustbench_lite.leaderboard import build, derive, merge, select, to_json, to_markdown, to_rich, verify
from robustbench_lite.records import DefenseRecord, ModelRecord, Run, ThreatRecord, settle, wilson
from robustbench_lite.records.certificate import (
    CERTIFICATE_SCHEMA,
    KEY,
    Certificate,
    CertificateSpecification,
    MethodRecord,
    certificate_faults,
    certificate_files,
    read_certificate,
    seal_certificate,
    settle_certificate,
    sound_certificate,
)
from robustbench_lite.records.contradiction import certified_beside, contradiction, refute_with_folder

from .run_builder import defense, make_run

EPS = 8 / 255
VOTES = DefenseRecord(
    name="a-vote", spec="a-vote", resolved={"sigma": 0.25}, randomized=True, differentiable=True, kind="inference"
)


def certificate(run: Run, *, eps: float = EPS, false: int = 0, **changes: Any) -> Certificate:
    """Of what a run left standing, every second image; `false`: and of so many images that it fooled."""
    s = run.specification
    specification = CertificateSpecification(
        version=s.version,
        model=s.model,
        defenses=s.defenses,
        dataset=s.dataset,
        method=MethodRecord(name="crown", per_image=False),
        threat=ThreatRecord(norm="linf", eps=eps),
        seed=0,
        batch_size=16,
        device="cpu",
        environment=s.environment,
        times=s.times,
    )
    specification = dataclasses.replace(specification, **changes)
    votes = "sigma" in specification.method.resolved
    rows, lies = [], 0
    for row in run.table.to_pylist():
        wrong = row["success"] and lies < false
        lies += wrong
        proved = wrong or (row["correct"] and not row["success"] and row["index"] % 2 == 0)
        rows.append(
            {
                **{name: row[name] for name in ("index", "content_hash", "label", "prediction", "correct")},
                "certified": proved,
                "radius": specification.threat.eps if proved else 0.0,
                "bound": (0.9 if proved else 0.2) if votes else (1.5 if proved else -0.5),
            }
        )
    assert lies == false
    return seal_certificate(specification, pa.Table.from_pylist(rows, schema=CERTIFICATE_SCHEMA))


def share(found: Certificate) -> float:
    return float(sum(found.table["certified"].to_pylist()) / found.table.num_rows)


def test_what_is_written_is_read_and_proves_itself(tmp_path: Path) -> None:
    made = certificate(make_run())
    path, status = settle_certificate(tmp_path, made)
    assert status == "written"
    read = sound_certificate(path)
    assert read.table.equals(made.table)
    assert read.specification == made.specification
    assert settle_certificate(tmp_path, made) == (path, "reproduced")
    before = path.read_bytes()
    other, status = settle_certificate(tmp_path, dataclasses.replace(made, table=made.table.slice(1)))
    assert (other, status) == (path, "reproduced")  # told by the hash alone
    assert path.read_bytes() == before


def test_another_one_of_the_same_name_is_written_beside(tmp_path: Path) -> None:
    run = make_run()
    first, _ = settle_certificate(tmp_path, certificate(run))
    second, status = settle_certificate(tmp_path, certificate(run, false=1))
    assert (status, second.name) == ("written", f"{first.stem}-2.parquet")
    assert not list(certificate_faults(read_certificate(second)))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"radius": -1.0}, "radius is negative or not finite"),
        ({"radius": 0.02}, "radius is neither 0 nor eps"),
        ({"bound": -1.0}, "certified does not follow"),
        ({"bound": None}, "a radius without a proof"),
        ({"prediction": None}, "correct does not follow"),
        ({"label": 9}, "label is outside the classes"),
        ({"index": -1}, "index is negative or not unique"),
        ({"content_hash": "abc"}, "content_hash is no SHA-256"),
    ],
)
def test_rows_that_contradict_themselves_are_faults(values: dict[str, Any], rule: str) -> None:
    made = certificate(make_run())
    rows = made.table.to_pylist()
    rows[next(i for i, row in enumerate(rows) if row["certified"])].update(values)
    table = pa.Table.from_pylist(rows, schema=CERTIFICATE_SCHEMA)
    assert any(rule in fault for fault in certificate_faults(seal_certificate(made.specification, table)))
    assert "the rows are not those that were hashed (rows_sha256)" in list(
        certificate_faults(dataclasses.replace(made, table=table))
    )


def test_a_changed_a_foreign_and_a_cut_file_are_named_and_left_alone(tmp_path: Path) -> None:
    run = make_run()
    settle(tmp_path, run)
    path, _ = settle_certificate(tmp_path, certificate(run))
    changed = path.with_name("changed.parquet")
    changed.write_bytes(path.read_bytes())
    (path.parent / "foreign.parquet").write_bytes(b"no Parquet")
    pq.write_table(pa.table({"a": [1]}), path.parent / "table.parquet")
    frame, problems = build(tmp_path)
    assert frame.certified_accuracy.notna().all()
    assert len(problems) == 3
    for name in ("changed", "foreign", "table"):
        assert sum(f"{name}.parquet" in problem for problem in problems) == 1
    assert len(certificate_files(tmp_path)) == 4
    assert any("foreign.parquet" in problem for problem in verify(tmp_path))


def test_the_board_shows_it_beside_the_run(tmp_path: Path) -> None:
    run, undefended = make_run(), make_run(defenses=(defense(),))
    made = certificate(run)
    for one in (run, undefended):
        settle(tmp_path, one)
    assert "certified" not in to_markdown(derive(tmp_path)[0])
    settle_certificate(tmp_path, made)
    frame, problems = build(tmp_path)
    assert not problems and not verify(tmp_path)
    rows = frame.set_index("defense")
    assert rows.certified_accuracy["none"] == share(made)
    low, high = wilson(round(share(made) * 40), 40)
    assert (rows.certified_low["none"], rows.certified_high["none"]) == (low, high)
    assert share(made) <= rows.robust_accuracy["none"]
    assert rows.certified_accuracy.isna()["bit-depth"]
    head, *lines = to_markdown(frame).splitlines()
    assert "| robust | certified | forwards |" in head
    assert f"{100 * share(made):.1f} [{100 * low:.1f}, {100 * high:.1f}]" in "".join(lines)
    assert len(select(frame, ["certified > 0"])) == 1
    assert '"certified_accuracy": null' in to_json(frame)
    assert to_rich(frame).columns[4].header == "robust\ncertified"


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"eps": 0.05}, True),
        ({"eps": 0.02}, False),
        ({"threat": ThreatRecord(norm="l2", eps=0.5)}, False),
        ({"defenses": (defense(),)}, False),
        ({"defenses": (defense("trades", kind="training"),)}, True),  # it is in the weights
        ({"model": ModelRecord(name="small-cnn", sha256="e" * 64, parameters=1234)}, False),
    ],
)
def test_it_counts_for_the_same_network_norm_and_no_smaller_eps(changes: dict[str, Any], counts: bool) -> None:
    run = make_run()
    made = certificate(run, **changes)
    assert certified_beside(run, [made])["certified_accuracy"] == (share(made) if counts else None)


def test_it_counts_only_where_it_has_every_image_of_the_run() -> None:
    run = make_run()
    made = certificate(run)
    part = seal_certificate(made.specification, made.table.slice(1))
    assert certified_beside(run, [part])["certified_accuracy"] is None
    better = certificate(run, eps=0.04, false=1)
    assert certified_beside(run, [made, part, better])["certified_accuracy"] == share(better)


def test_a_radius_for_every_image_counts_at_the_eps_of_the_run() -> None:
    run = make_run(defenses=(VOTES,), votes=100)
    method = MethodRecord(name="smoothing", per_image=True, resolved={"sigma": 0.25})
    made = certificate(run, eps=0.02, method=method)
    assert certified_beside(run, [made])["certified_accuracy"] == 0.0  # no radius reaches the run's eps
    assert certified_beside(run, [certificate(run, eps=0.1, method=method)])["certified_accuracy"] == share(made)


def planted(folder: Path, **changes: Any) -> tuple[Path, Path]:
    run = make_run()
    return settle(folder, run)[0], settle_certificate(folder, certificate(run, false=1, **changes))[0]


def test_a_false_certificate_stops_what_meets_it(tmp_path: Path) -> None:
    run, made = planted(tmp_path)
    fooled = next(row for row in make_run().table.to_pylist() if row["success"])
    told = rf"contradict each other: image {fooled['index']} \({fooled['content_hash'][:12]}\) is certified as class"
    for meet in (
        lambda: derive(tmp_path),
        lambda: build(tmp_path),
        lambda: refute_with_folder(tmp_path, certificate=read_certificate(made)),
        lambda: refute_with_folder(tmp_path, run=Run(make_run().specification, make_run().table, run)),
    ):
        with pytest.raises(RecordError, match=told) as caught:
            meet()
        assert str(run) in str(caught.value)
        assert str(made) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert run.exists() and made.exists()
    with pytest.raises(RecordError, match="contradict each other"):
        merge(tmp_path / "new", tmp_path)


def test_what_does_not_meet_is_no_contradiction() -> None:
    run = make_run()
    assert contradiction(certificate(run, false=1), run)
    assert contradiction(certificate(run), run) is None
    fooled = next(row for row in run.table.to_pylist() if row["success"])
    short = certificate(run, false=1, eps=fooled["distance_linf"] * 0.99)
    assert contradiction(short, run) is None
    assert contradiction(certificate(run, false=1, eps=fooled["distance_linf"] * 1.01), run)
    other = ModelRecord(name="small-cnn", sha256="e" * 64, parameters=1234)
    assert contradiction(certificate(run, false=1, model=other), run) is None
    assert contradiction(certificate(run, false=1, defenses=(defense(),)), run) is None
    # A run in another norm says how far its images are in this one too.
    far = make_run(threat=ThreatRecord(norm="l2", eps=0.05))
    assert contradiction(certificate(far, false=1, eps=0.06), far)


@pytest.mark.parametrize(("margin", "refuted"), [(-0.5, True), (-0.04, False)])
def test_votes_refute_only_beyond_chance(margin: float, refuted: bool) -> None:
    """100 votes of which the label has at most (1 + margin) / 2, where it is certified to win at least 0.54 of them."""
    run = make_run(defenses=(VOTES,), votes=100)
    rows = run.table.to_pylist()
    for row in rows:
        row["adversarial_margin"] = margin if row["success"] else row["adversarial_margin"]
    run = Run(run.specification, pa.Table.from_pylist(rows, schema=run.table.schema))
    method = MethodRecord(name="smoothing", per_image=True, resolved={"sigma": 0.25})
    found = contradiction(certificate(run, false=1, eps=0.055, method=method), run)
    assert (found is not None) == refuted


def test_the_specification_travels_in_the_file(tmp_path: Path) -> None:
    path, _ = settle_certificate(tmp_path, certificate(make_run()))
    told = CertificateSpecification.from_json(pq.read_schema(path).metadata[KEY])
    assert path.name == f"{told.certificate_id()}.parquet"
    assert path.name.startswith("small_cnn-none-digits-crown-linf-8_255-")
    with pytest.raises(RecordError, match=r"written by a newer robustbench-lite \(schema version 3\)"):
        CertificateSpecification.from_json(dataclasses.replace(told, schema_version=3).to_json())
