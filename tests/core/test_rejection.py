"""A defense that turns images away: what counts as fooled, as right, and what the record says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.defense import InferenceDefense, wrap_all
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.defenses.feature_squeezing import FeatureSqueezing
from robustbench_lite.defenses.knn import KNN
from robustbench_lite.defenses.temperature import Temperature
from robustbench_lite.errors import UserError
from robustbench_lite.examples import save_examples
from robustbench_lite.losses import LOSSES, margin
from robustbench_lite.network import Network, Noise
from robustbench_lite.records.check import check_run
from robustbench_lite.records.run import seal
from robustbench_lite.records.specification import Specification
from robustbench_lite.reverify import reverify
from robustbench_lite.streams import Stream

from .nets import images, labels_of, mlp

MODEL, X = mlp(), images(40)
Y = labels_of(MODEL, X)


@dataclass(frozen=True)
class Suspicious(InferenceDefense):
    """Turns away what is brighter in the mean than `limit`."""

    name: ClassVar[str] = "suspicious"
    summary: ClassVar[str] = "for the test"
    source: ClassVar[str] = "none"

    limit: float = 0.53

    @property
    def rejects(self) -> bool:
        return True

    def wrap(self, model: nn.Module) -> nn.Module:
        return _Suspicious(model, self.limit)


class _Suspicious(nn.Module):
    def __init__(self, model: nn.Module, limit: float) -> None:
        super().__init__()
        self.model, self.limit = model, limit

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        beyond = 20 * (x.flatten(1).mean(1) - self.limit)
        return torch.cat([logits, (logits.amax(1) + beyond).unsqueeze(1)], 1)


def evaluate(**changes: Any) -> rbl.Result:
    arguments: dict[str, Any] = {"eps": 0.1, "defenses": [Suspicious()], "checks": False, **changes}
    return rbl.evaluate(MODEL, X, Y, **arguments)


def _by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
    """The class that is named, and whether the image is turned away."""
    return labels_of(MODEL, x), x.flatten(1).mean(1) > Suspicious().limit


def test_logits_of_an_image_turned_away_are_its_labels() -> None:
    network = Network(nn.Identity(), n_classes=3, rejects=True)
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 0.0], [5.0, 2.0, 3.0, 4.0]])
    y = torch.tensor([0, 0, 0])
    expected = torch.tensor([[4.0, 2, 3], [1, 2, 3], [5, 2, 3]])
    assert torch.allclose(network.unrejected(logits, y), expected, atol=1e-5)
    assert network.fooled(logits, y, None).tolist() == [False, True, False]
    tie = torch.tensor([[1.0, 2.0, 0.0, 2.0]])  # as likely turned away as taken for class 1: it is not turned away
    assert network.fooled(tie, y[:1], None) and network.unrejected(tie, y[:1]).argmax(1) == 1
    assert Network(nn.Identity()).unrejected(logits, y) is logits


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "square", "deepfool", "auto"])
def test_the_verdict_is_that_of_a_count_by_hand(attack: str) -> None:
    r = evaluate(attack=attack, eps=0.15)
    assert r.adversarial is not None
    named, away = _by_hand(X)
    seen, moved_away = _by_hand(r.adversarial)
    attacked = r.column("attacked").bool()
    assert torch.equal(r.column("correct").bool(), (named == Y) & ~away)
    inside = (r.adversarial - X).flatten(1).abs().amax(1) <= 0.15 + 1e-6
    assert torch.equal(r.success, attacked & (seen != Y) & ~moved_away & inside)
    assert r.success.any() and away.any() and not check_run(r.run)
    assert r.summary()["false_positive_rate"] == pytest.approx(float(away.double().mean()))
    assert r.rejected == pytest.approx(float(moved_away[attacked].double().mean()))
    predictions = r.column("prediction").long()
    assert torch.equal(predictions == 4, away)


def test_an_attack_that_knows_of_the_detector_finds_more_than_one_that_does_not() -> None:
    aware = evaluate(eps=0.15).success
    blind = evaluate(eps=0.15, attack="transfer:pgd", surrogates=[MODEL]).success
    assert int(aware.sum()) > int(blind.sum())


def test_the_batch_size_changes_no_verdict() -> None:
    one, other = (evaluate(batch_size=size, eps=0.12, deterministic=True) for size in (3, 40))
    assert one.run.table.equals(other.run.table)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_gradient_is_that_of_the_loss_of_what_is_left(loss: str) -> None:
    network = Network(Suspicious().wrap(MODEL), n_classes=4, rejects=True)
    rows = torch.zeros(len(X), dtype=torch.int64)
    noise = Noise(Stream(rows), rows)
    gradient, logits = network.gradient(X, noise, LOSSES[loss], Y, None)
    x = X.clone().requires_grad_()
    raw = network.model(x)
    label = torch.maximum(raw[torch.arange(40), Y], raw[:, 4])
    kept = torch.stack([torch.where(Y.eq(k), label, raw[:, k]) for k in range(4)], 1)
    assert torch.allclose(logits, kept.detach(), atol=1e-6)
    expected = torch.autograd.grad(LOSSES[loss](kept, Y, None).sum(), x)[0]
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert torch.allclose(margin(network.logits(X, noise, y=Y), Y), margin(kept.detach(), Y), atol=1e-5)


def test_a_success_that_was_turned_away_is_a_fault_of_the_record() -> None:
    r = evaluate(eps=0.15)
    row = int(r.success.nonzero()[0])
    table = r.run.table
    predictions = table["adversarial_prediction"].to_pylist()
    predictions[row] = 4
    place = table.column_names.index("adversarial_prediction")
    forged = table.set_column(place, table.schema.field(place), [predictions])
    faults = check_run(seal(r.run.specification, forged))
    assert any("success without misclassification" in fault for fault in faults)
    stated = dataclasses.replace(r.run.specification, defenses=())
    assert any("outside the 4 classes" in fault for fault in check_run(seal(stated, table)))


def test_the_record_comes_back_and_older_ones_are_read() -> None:
    specification = evaluate().run.specification
    assert specification.rejects
    assert Specification.from_json(specification.to_json()) == specification
    older = rbl.evaluate(MODEL, X, Y, eps=0.1, checks=False).run.specification
    text = older.to_json().replace('"schema_version": 5', '"schema_version": 3')
    assert Specification.from_json(text).run_id() == older.run_id()


def test_saved_examples_are_confirmed(tmp_path: Path) -> None:
    r = evaluate(eps=0.15, leaderboard=tmp_path)
    save_examples(tmp_path / "e.npz", r, X)
    found = reverify(r.run, tmp_path / "e.npz", MODEL, defenses=[Suspicious()])
    assert not found.faults or found.faults == ("the file e.npz is not the one the run names (SHA-256)",)
    assert (found.clean, found.adversarial, found.success) == (40, 40, 40)


def test_a_network_without_the_column_is_named() -> None:
    @dataclass(frozen=True)
    class Forgotten(Suspicious):
        def wrap(self, model: nn.Module) -> nn.Module:
            return model

    with pytest.raises(
        UserError, match=r"expected logits of shape \(\d+, 5\), one for each class and one for rejection"
    ):
        evaluate(defenses=[Forgotten()])


def test_a_defense_that_learns_needs_images() -> None:
    @dataclass(frozen=True)
    class Learns(Suspicious):
        @property
        def fit_samples(self) -> int:
            return 2

        def fit(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
            return _Suspicious(model, float(x.mean()) + 0 * float(y.sum()))

    with pytest.raises(UserError, match=r"^fit_data: defense suspicious learns from training images; give some"):
        evaluate(defenses=[Learns()])
    learned = evaluate(defenses=[Learns()], fit_data=(torch.full((2, 1, 6, 6), 0.53), torch.zeros(2).long()))
    assert torch.equal(learned.success, evaluate().success)
    assert learned.run.specification.defenses[0].fit is not None
    assert learned.run.specification.run_id() != evaluate().run.specification.run_id()


def test_a_score_at_its_threshold_rejects_nothing() -> None:
    known = images(200, seed=1)
    detector = FeatureSqueezing(bits=6, size=1, samples=200)
    defenses = [detector, Temperature(temperature=1e-4)]  # a network that is sure: most scores are 0
    fit = (known, torch.zeros(200).long())
    r = rbl.evaluate(
        MODEL, X, Y, eps=0.3, attack_options={"loss": "margin"}, defenses=defenses, fit_data=fit, checks=False
    )
    assert r.adversarial is not None and not check_run(r.run)
    with torch.no_grad():
        said = wrap_all(MODEL, defenses, fit)(r.adversarial).argmax(1)
    attacked = r.column("attacked").bool()
    assert torch.equal(r.success, attacked & (said != Y) & (said < 4)) and r.success.any()


def test_what_learns_meets_the_images_first() -> None:
    with pytest.raises(UserError, match=r"^defenses: knn learns from images as they are, .* give it before bit-depth"):
        evaluate(defenses=[BitDepth(), KNN()], fit_data=(X, Y))
    with pytest.raises(UserError, match=r"^defenses: at most one may reject images, got suspicious and suspicious"):
        evaluate(defenses=[Suspicious(), Suspicious()])
    with pytest.raises(UserError, match=r"^defenses: at most one may learn from images, got knn and knn"):
        evaluate(defenses=[KNN(), KNN()], fit_data=(X, Y))


def test_each_defense_learns_from_as_many_images_as_it_says() -> None:
    @dataclass(frozen=True)
    class Counts(InferenceDefense):
        name: ClassVar[str] = "counts"
        summary: ClassVar[str] = "for the test"
        source: ClassVar[str] = "none"

        @property
        def fit_samples(self) -> int:
            return 8

        def fit(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
            assert len(x) == 8 and torch.bincount(y, minlength=4).tolist() == [2, 2, 2, 2]
            return model

    wrap_all(MODEL, [Counts()], (X, torch.arange(40) % 4))
