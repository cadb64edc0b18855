"""What a person reads of a result: every number of the record, aligned, and no dump."""

from __future__ import annotations

import torch

import robustbench_lite as rbl

from .core.nets import images, labels_of, mlp


def test_a_result_is_printed_as_a_few_aligned_lines() -> None:
    model, x = mlp(scale=4.0), images(40)
    found = rbl.evaluate(model, x, labels_of(model, x), eps=0.03, attack_options={"steps": 5}, checks=False)
    lines = str(found).splitlines()
    assert "attack pgd, linf 0.03, 40 images" in lines[0]
    assert len(lines) <= 6
    # Values begin in one column.
    assert {len(line) - len(line[2:].lstrip()) for line in lines[1:] if line[19:20] not in ("", " ")} == {2}
    said = {line[2:18].strip(): line[19:] for line in lines[1:]}
    assert said["clean accuracy"].split() == ["100.0", "%"]
    assert said["robust accuracy"].split()[0] == f"{100 * found.robust_accuracy:.1f}"
    assert said["verdict"] == found.verdict
    assert f"{found.forwards / 40:.1f} forward" in said["cost"]
    assert len(repr(found)) < 200 and "pgd" in repr(found) and f"{100 * found.robust_accuracy:.1f}" in repr(found)


def test_a_minimal_attack_says_how_far() -> None:
    model, x = mlp(scale=4.0), images(20)
    found = rbl.evaluate(
        model, x, labels_of(model, x), attack="ddn", norm="l2", eps=0.3, attack_options={"steps": 20}, checks=False
    )
    assert f"median distance  {found.summary()['median_distance']:.4g} in l2" in str(found)
    assert torch.isfinite(torch.tensor(found.summary()["median_distance"]))
