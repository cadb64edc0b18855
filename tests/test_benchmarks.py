"""The benchmark's own parts, and published numbers met on networks that somebody else trained."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.data import balanced_subset
from robustbench_lite.models import build_model

ROOT = Path(__file__).resolve().parent.parent
RESNET20 = f"{ROOT / 'benchmarks' / 'resnet20.py'}:make"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmarks' modules by name; the clone's root is on no path otherwise."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def cifar(shared_data: Path, shared_weights: Path) -> tuple[nn.Module, rbl.Dataset]:
    data = rbl.load_dataset(f"parquet:{shared_data / 'cifar10-jpeg'}")
    weights = shared_weights / "cifar10-resnet20" / "resnet20-12fca82f.th"
    return rbl.load_model(RESNET20, n_classes=10, shape=data.shape, weights=str(weights)).module, data


def mnist(shared_data: Path, shared_weights: Path, file: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    data = rbl.load_dataset("mnist", data_dir=shared_data)
    model = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=str(shared_weights / file))
    index = balanced_subset(data.labels, images)
    return model.module, data.images(index), data.labels[index]


def test_resnet20_meets_its_published_accuracy(cifar: tuple[nn.Module, rbl.Dataset]) -> None:
    network, data = cifar
    index = balanced_subset(data.labels, 2500)  # of 10,000: two standard deviations are 0.014
    with torch.no_grad():
        right = torch.cat([network(x).argmax(1) == y for _, x, y in data.blocks(index, 100)])
    assert float(right.double().mean()) == pytest.approx(0.8103, abs=0.014)


def test_resnet20_falls_to_pgd(cifar: tuple[nn.Module, rbl.Dataset]) -> None:
    network, data = cifar
    index = balanced_subset(data.labels, 100)
    found = rbl.evaluate(
        network, data.images(index), data.labels[index], eps=8 / 255, attack_options={"steps": 40, "step_size": 2 / 255}
    )
    assert found.clean_accuracy > 0.7
    assert found.robust_accuracy == 0.0


def test_fast_at_keeps_its_published_robustness(shared_data: Path, shared_weights: Path) -> None:
    network, x, y = mnist(shared_data, shared_weights, "mnist-fast-at/fgsm.pth", 500)
    options = {"steps": 50, "step_size": 0.01, "restarts": 3}
    found = rbl.evaluate(network, x, y, eps=0.3, attack_options=options, checks=False)
    assert found.clean_accuracy == pytest.approx(0.985, abs=0.015)
    assert found.robust_accuracy == pytest.approx(0.892, abs=0.03)


def test_certified_network_keeps_what_was_proved(shared_data: Path, shared_weights: Path) -> None:
    # At most 582 of all 10,000 images can fall; these are 1,000 of them, and 2.5 % more is three deviations.
    network, x, y = mnist(shared_data, shared_weights, "mnist-certified/mnist.pth", 1000)
    found = rbl.evaluate(network, x, y, eps=0.1, attack_options={"steps": 20, "step_size": 0.02})
    assert 0.942 - 0.025 <= found.robust_accuracy < found.clean_accuracy
    assert found.clean_accuracy == pytest.approx(0.982, abs=0.015)


class Sign(nn.Module):
    """Class 1 where the first pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        z = x[:, 0, 0, 0] - 0.5
        return torch.stack([-z, z], 1)


def part(benchmarks: Any, x: Tensor, y: Tensor, **changes: Any) -> Any:
    given = {"eps": 0.2, "step_size": 0.1, "steps": 3, "batch_size": 4} | changes
    return benchmarks("parts").Part("toy", "a toy", Sign().eval(), x, y, **given)


def test_calls_are_counted_forwards_and_backwards(benchmarks: Any) -> None:
    network, x = Sign(), torch.rand(5, 1, 2, 2)
    with benchmarks("measure").counted(network) as calls:
        network(x)
        leaf = x[:3].clone().requires_grad_()
        torch.autograd.grad(network(leaf).sum(), leaf)
    network(x)
    assert (calls.forwards, calls.backwards) == (8, 3)


def test_judge_believes_only_images_inside_the_threat(benchmarks: Any) -> None:
    x = torch.full((5, 1, 1, 1), 0.6)
    y = torch.tensor([1, 1, 1, 1, 0])
    #                 fooled, too far, outside the box, not fooled; wrong from the start
    adversarial = torch.tensor([0.45, 0.3, -0.1, 0.55, 0.6]).reshape(5, 1, 1, 1)
    standing = benchmarks("measure").standing(part(benchmarks, x, y), adversarial)
    assert standing.tolist() == [False, True, True, True, False]


def test_the_floor_takes_one_gradient_a_step(benchmarks: Any) -> None:
    toy = part(benchmarks, torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64))
    contestants = benchmarks("contestants")
    field = list(contestants.contestants(toy, lambda _: None, peers=False))
    found = benchmarks("measure").measure(toy, field, rounds=2, note=lambda _: None)
    floor, nothing_dropped, shipped, *_ = found
    assert (floor.calls.forwards, floor.calls.backwards) == (18, 18)
    assert floor.robust is None
    assert shipped.calls.backwards <= nothing_dropped.calls.backwards
    assert all(len(m.seconds) == 2 for m in found)
    assert floor.ratio(floor) == 1.0


def test_ratios_are_medians_within_a_turn(benchmarks: Any) -> None:
    measure, report = benchmarks("measure"), benchmarks("report")
    calls = measure.Calls(80, 40)
    floor = measure.Measured("floor", "floor", [1.0, 10.0, 2.0], calls, None)
    half, quarter = torch.tensor([True, False, True, False]), torch.tensor([True, False, False, False])
    slow = measure.Measured("slow", "peer", [4.0, 40.0, 8.0], calls, half)
    quick = measure.Measured("quick", "peer", [2.0, 20.0, 6.0], calls, quarter)
    assert measure.best_peer([floor, slow, quick]) is quick
    assert [row[:5] for row in report.rows([floor, slow, quick], 2)] == [
        ("floor", "2.00", "1.000", "0.500", "-"),
        ("slow", "8.00", "4.000", "2.000", "50.0%"),
        ("quick", "6.00", "2.000", "1.000", "25.0%"),
    ]


def still(part: Any) -> Any:
    """A peer that changes nothing."""
    return lambda: part.x.clone()


def pushed(part: Any) -> Any:
    """A peer that goes straight to the other side, as far as it may."""
    return lambda: (part.x - part.eps * (2 * part.y - 1).reshape(-1, 1, 1, 1)).clamp(0, 1)


def broken(part: Any) -> Any:
    """A peer that raises."""

    def run() -> Tensor:
        raise IndexError("of somebody else\nsecond line")

    return run


def rivalry(benchmarks: Any, monkeypatch: pytest.MonkeyPatch, peers: dict[str, Any], **changes: Any) -> Any:
    """Ours beside planted peers on ten images of the toy, half a way of 0.05 and half one of 0.3 from its boundary."""
    x = torch.full((10, 1, 1, 1), 0.5) + torch.tensor([0.05, 0.3] * 5).reshape(-1, 1, 1, 1)
    toy = part(benchmarks, x, torch.ones(10, dtype=torch.int64))
    monkeypatch.setattr(benchmarks("rivals"), "_loaded", lambda on, images, batch_size: toy)
    given = {"attack": "fgsm", "norm": "linf", "on": "toy", "eps": 0.1, "images": 10, **changes}
    return benchmarks("rivals").Rivalry(peers=peers, **given)


def test_attack_by_attack_says_who_leaves_more(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = {"still": still, "pushed": pushed, "broken": broken}
    found = rivalry(benchmarks, monkeypatch, peers)
    rows = list(benchmarks("peers").compared(found, 4, print, lambda _: None))
    assert [row.peer for row in rows] == ["still", "pushed", "broken"]
    assert [row.ours.robust for row in rows] == [0.5] * 3
    assert [row.points for row in rows[:2]] == [-50.0, 0.0]
    assert not any(row.missed for row in rows)
    assert [row.cells()[-1] for row in rows] == ["yes", "yes", "the peer fails: of somebody else"]
    assert all(len(row.cells()) == len(benchmarks("peers").HEADS) for row in rows)


def test_a_miss_is_a_miss_unless_its_reason_is_listed(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # One point more is allowed, and noise leaves all ten where the peer leaves five.
    for reasons, missed, verdict in (
        ({}, True, "NO"),
        ({"pushed": "noise is no attack"}, False, "no: noise is no attack"),
    ):
        found = rivalry(benchmarks, monkeypatch, {"pushed": pushed}, attack="noise", eps=0.06, reasons=reasons)
        (row,) = benchmarks("peers").compared(found, 4, print, lambda _: None)
        assert (row.kept, row.missed, row.cells()[-1]) == (False, missed, verdict)
        assert row.points >= 10


def test_a_peer_that_leaves_its_ball_fools_nobody(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def beyond(part: Any) -> Any:
        return lambda: part.x - 5 * part.eps

    found = rivalry(benchmarks, monkeypatch, {"beyond": beyond})
    (row,) = benchmarks("peers").compared(found, 4, print, lambda _: None)
    assert row.theirs.robust == 1.0


def test_nearest_images_are_measured(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rivalry(benchmarks, monkeypatch, {"pushed": pushed}, attack="deepfool")
    (row,) = benchmarks("peers").compared(found, 4, print, lambda _: None)
    assert found.minimal
    assert row.ours.distance == pytest.approx(0.05, abs=0.01)
    assert row.theirs.distance == pytest.approx(0.1)
    assert row.ours.robust == 0.5


def test_every_declared_pair_names_what_there_is(benchmarks: Any) -> None:
    from robustbench_lite import registry
    from robustbench_lite.options import configure

    pairs = benchmarks("pairs").PAIRS
    for pair in (*pairs, *benchmarks("nearest").RIVALRIES):
        kind = registry.load("attacks", pair.attack)
        assert pair.norm in kind.norms, pair.attack
        configure(kind, pair.settings())
        assert pair.peers, pair.attack
        assert set(pair.reasons) <= set(pair.peers), pair.attack
        assert 4 <= pair.images <= 200
    stated = [(pair.attack, pair.norm, pair.on, pair.steps, tuple(pair.peers), str(pair.options)) for pair in pairs]
    assert len(set(stated)) == len(stated)


def test_absent_folders_are_named_and_nothing_else_runs(tmp_path: Path) -> None:
    environment = {"RBL_DATA": str(tmp_path), "RBL_WEIGHTS": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "mnist-fast-at/fgsm.pth" in done.stderr
    assert "RBL_WEIGHTS" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_plain_loop_trains_the_same_network_and_learns(benchmarks: Any) -> None:
    plain = benchmarks("plain")
    torch.manual_seed(0)
    network = plain.small_cnn()
    own = build_model("small-cnn", n_classes=10, shape=(1, 28, 28), seed=0)
    assert [p.shape for p in network.parameters()] == [p.shape for p in own.parameters()]
    y = torch.arange(400) % 10
    x = torch.zeros(400, 1, 28, 28)
    x[torch.arange(400), 0, :, 2 * y] = 1.0  # a line whose place is the class, which eps 0.3 cannot hide
    for batches in (plain.from_memory, plain.from_loader):
        seen = torch.cat([labels for _, labels in batches(x, y, 0)()])
        assert torch.equal(seen.sort().values, y.sort().values)
    plain.train(network, plain.from_memory(x, y, 0), 4, 25)
    assert (network(x).argmax(1) == y).float().mean() > 0.9


def test_the_matrix_counts_what_was_missed_and_keeps_the_reference(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = benchmarks("matrix")
    monkeypatch.setenv("RBL_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval().requires_grad_(False)
    x = torch.rand(6, 1, 4, 4)
    y = model(x).argmax(1)
    cell = matrix.Cell("net", "linf", 0.05)
    first = matrix.reference(model, x, y, cell)
    monkeypatch.setattr(matrix, "attacked", None)  # a second look finds it in the cache
    assert matrix.reference(model, x, y, cell) == first
    worse = matrix.Measured([True] * 6, first.passes, first.seconds)
    better = matrix.Measured([False] * 6, 1.0, 0.0)
    row = dict(zip(matrix.HEADS, matrix.row(cell, worse, better), strict=True))
    assert row["missed"] == "0 1 2 3 4 5" and row["found alone"] == "0" and row["within"] == "no"
    row = dict(zip(matrix.HEADS, matrix.row(cell, better, worse), strict=True))
    assert row["missed"] == "-" and row["found alone"] == "6" and row["within"] == "yes"
    assert "above AutoAttack in 1" in matrix.summary([(worse, better), (better, worse)])


def test_every_network_of_the_matrix_is_known(benchmarks: Any) -> None:
    matrix, nets = benchmarks("matrix"), benchmarks("nets")
    assert set(matrix.MATRIX) <= {*matrix.SHIPPED, *nets.RECIPES}
    assert len(list(matrix.cells())) >= 40


@pytest.mark.parametrize("architecture", ["cnn", "resnet", "vit"])
def test_architectures_take_both_sizes(architecture: str, benchmarks: Any) -> None:
    build = benchmarks("architectures").ARCHITECTURES[architecture]
    for channels, size in ((1, 28), (3, 32)):
        assert build(channels, size).eval()(torch.rand(2, channels, size, size)).shape == (2, 10)
