"""`rbl certify`: what it says and writes, beside what `rbl evaluate` finds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustbench_lite.records.certificate import read_certificate

from .harness import Rbl, listing, rows

DATA = ("--model", "nets.py:make", "--dataset", "npz:ok.npz", "--leaderboard", "lb")
SMOOTH = ("--method", "smoothing", "--defense", "randomized-smoothing", "--defense-option", "sigma=0.1")


def test_a_certificate_and_the_run_beside_it(rbl: Rbl, evaluate: Rbl) -> None:
    found = rbl("certify", *DATA, "--eps", "0.005", "--json").json
    assert found["method"] == "crown" and found["n"] == 24
    made = rows(found["certificate_file"])
    assert found["certified_accuracy"] == sum(row["certified"] for row in made) / 24 > 0
    assert found["certified_low"] < found["certified_accuracy"] < found["certified_high"]
    assert found["clean_accuracy"] == pytest.approx(20 / 24)
    run = evaluate("--eps", "0.005", "--steps", "5", "--json").json
    assert found["certified_accuracy"] <= run["robust_accuracy"]
    (row,) = json.loads(rbl("leaderboard", "show", "--leaderboard", "lb", "--format", "json").out)
    assert row["certified_accuracy"] == found["certified_accuracy"]
    shown = rbl("leaderboard", "show", "--leaderboard", "lb").out
    assert "certified" in shown and f"{100 * found['certified_accuracy']:.1f}" in shown
    said = rbl("certify", *DATA, "--eps", "0.005")
    assert f"certified accuracy {100 * found['certified_accuracy']:.1f} %  (95 % interval" in said.out
    assert "(the same rows as the certificate that was there)" in said.out
    interval = rbl("certify", *DATA, "--eps", "0.005", "--method", "interval", "--json").json
    assert interval["certified_accuracy"] <= found["certified_accuracy"]
    assert len([name for name in listing(Path("lb")) if name.startswith("certificates/")]) == 2


def test_smoothing_with_a_table_and_a_figure_and_an_attack_on_the_vote(rbl: Rbl, evaluate: Rbl) -> None:
    quick = ("--n0", "20", "--n", "500", "--alpha", "0.01")
    said = rbl("certify", *DATA, *SMOOTH, *quick, "--eps", "0.0512345", "--figure", "radius.png")
    assert said.code == 0, said.err
    radii, shares = (
        re.search(rf"^  {name} +(.*)$", said.out, re.M)[1].split()  # type: ignore[index]
        for name in ("radius", "certified, %")
    )
    assert radii[0] == "0" and len(radii) == len(shares) > 2
    assert [float(share) for share in shares] == sorted(map(float, shares), reverse=True)
    assert float(shares[-1]) == 0
    table = dict(zip(radii, shares, strict=True))
    assert f"certified accuracy {table['0.0512345']} %" in said.out
    assert "abstained" in said.out
    assert Path("radius.png").read_bytes().startswith(b"\x89PNG")
    (file,) = Path("lb/certificates").glob("*.parquet")
    told = read_certificate(file).specification.method
    assert told.options == {"n0": 20, "n": 500, "alpha": 0.01}
    assert told.resolved == {"n0": 20, "n": 500, "alpha": 0.01, "copies": 500, "sigma": 0.1}
    attacked = evaluate("--norm", "l2", "--eps", "0.0512345", "--steps", "3", "--json", *SMOOTH[2:], "--no-checks").json
    assert attacked["robust_accuracy"] >= 0.5
    (row,) = json.loads(rbl("leaderboard", "show", "--leaderboard", "lb", "--format", "json").out)
    assert row["certified_accuracy"] is not None


def test_a_false_certificate_ends_the_run_with_one_line(
    rbl: Rbl, evaluate: Rbl, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_lite.bounds import Bounds

    honest = Bounds.certified

    def lies(self: Bounds, x: object, y: object, **threat: object) -> object:
        holds, least = honest(self, x, y, **threat)  # type: ignore[arg-type]
        return holds | True, least.abs() + 1

    monkeypatch.setattr(Bounds, "certified", lies)
    assert rbl("certify", *DATA, "--eps", "0.05").code == 0
    written = evaluate("--eps", "0.05", "--steps", "5")  # the run comes after the certificate
    assert written.error.count("contradict each other: image ") == 1
    assert "lb/certificates/" in written.error and "lb/runs/" in written.error
    assert "contradict each other" in rbl("leaderboard", "show", "--leaderboard", "lb").error
    for path in Path("lb/certificates").iterdir():
        path.unlink()
    certified = rbl("certify", *DATA, "--eps", "0.05")  # the certificate comes after the run
    assert "contradict each other" in certified.error
    assert "contradict each other" in rbl("leaderboard", "build", "--leaderboard", "lb").error
    verified = rbl("leaderboard", "verify", "--leaderboard", "lb")
    assert verified.code == 2 and "contradict each other" in verified.out + verified.err


MINE = """
from dataclasses import dataclass
import torch
import robustbench_lite as rbl
from robustbench_lite.certifier import Proofs


@dataclass(frozen=True)
class Lipschitz(rbl.Certifier):
    name, summary, source, norms = "lipschitz", "the product of the layers' norms", "mine", ("l2",)
    per_image = True
    share: float = 1.0

    def prepare(self, problem):
        norms = [torch.linalg.matrix_norm(p.double(), 2) for p in problem.module.parameters() if p.ndim == 2]
        slope = 2**0.5 * torch.stack(norms).prod()

        def prove(x, y, stream, *, tick):
            logits = problem.module(x).double()
            top = logits.topk(2, 1)
            gap = top.values[:, 0] - top.values[:, 1]
            tick(len(x))
            return Proofs(top.indices[:, 0], self.share * gap / slope, gap)

        return prove
"""


def test_a_method_of_ones_own(rbl: Rbl, evaluate: Rbl, folder: Path) -> None:
    (folder / "mine.py").write_text(MINE, "utf-8")
    own = ("--method", "mine.py:Lipschitz", "--method-option", "share=0.5", "--eps", "0.001")
    found = rbl("certify", *DATA, *own, "--json").json
    assert found["method"] == "lipschitz" and found["method_options"] == {"share": 0.5}
    assert found["certified_at"]["0"] == found["clean_accuracy"] >= found["certified_accuracy"] > 0
    made = read_certificate(found["certificate_file"])
    assert made.specification.method.source_sha256 is not None
    assert evaluate("--norm", "l2", "--eps", "0.001", "--steps", "3").code == 0
    assert rbl("plugins", "certifiers", "crown").out.startswith("crown: linear bounds")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method", "crwn"), "--method: unknown name 'crwn'; did you mean crown?"),
        (("--method", "smoothing"), "--method: smoothing certifies a vote over noisy copies and there is no defense"),
        ((*SMOOTH, "--norm", "linf"), "--norm: method smoothing certifies l2, got 'linf'"),
        ((*SMOOTH, "--n", "0"), "--n must be >= 1, got 0"),
        ((*SMOOTH, "--n", "many"), "--n must be a whole number, got 'many'"),
        ((*SMOOTH, "--alpha", "2"), "--alpha must be in (0, 1), got 2"),
        ((*SMOOTH, "--n", "5", "--method-option", "n=6"), "--n: n is given twice, here and by --method-option"),
        (("--n", "5"), "--n: crown has no option 'n'; it takes no options"),
        (("--eps", "-1"), "--eps must be >= 0, got -1"),
        (("--eps", "2"), "--eps must be at most 1"),
        (("--figure", "x.png"), "--figure: only smoothing finds a radius for every image"),
        ((*SMOOTH, "--figure", "x.pdf"), "--figure must be a path that ends in .png"),
        (("--batch-size", "0"), "--batch-size must be >= 1, got 0"),
        (("--model", "nets.py:raises"), "raised KeyError"),
        (("--model", "nets.py:seven_classes"), "--model: expected logits of shape (1, 4)"),
        (("--model", "nets.py:softmax"), "--model: cannot bound 1 (Softmax)"),
        (("--defense", "random-noise"), "--method: crown cannot bound the randomised defense random-noise"),
        (("--defense", "bit-depth"), "--defense: bit-depth stands before the network, and bounds cannot follow it"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], told: str, rbl: Rbl) -> None:
    given = [part for pair in zip(DATA[::2], DATA[1::2], strict=True) if pair[0] not in arguments for part in pair]
    assert told in rbl("certify", *given, *arguments).error
    assert not list(Path("lb").rglob("*.parquet"))
