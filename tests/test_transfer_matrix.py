"""The matrix of who fools whom: each cell is what an evaluation says, and every number follows from the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.data import from_arrays
from robustbench_lite.errors import RecordError, UserError
from robustbench_lite.halves import half_of, halves
from robustbench_lite.losses import get_loss
from robustbench_lite.models import LoadedModel
from robustbench_lite.query import Query
from robustbench_lite.records.summary import wilson
from robustbench_lite.streams import content_hashes
from robustbench_lite.surrogate import Surrogate, Transfer
from robustbench_lite.threat import Threat
from robustbench_lite.transfer import METADATA_KEY, TransferMatrix, run_transfer
from robustbench_lite.transfer_figure import save_matrix
from robustbench_lite.transfer_plan import TransferPlan

from .core.nets import Rows, images, labels_of, mlp

EPS = 0.1
SHORT: dict[str, Any] = {"eps": EPS, "attack_options": {"steps": 6}}


@pytest.fixture
def models() -> dict[str, nn.Module]:
    """Two that are nearly the same, and one that is not."""
    near = mlp(scale=4.0)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    return {"a": mlp(scale=4.0), "b": near, "c": mlp(seed=5, scale=4.0)}


@pytest.fixture
def x() -> Tensor:
    return images(50)


@pytest.fixture
def y(models: dict[str, nn.Module], x: Tensor) -> Tensor:
    """What the networks say, first one and then another, so that each is wrong about some."""
    said = [labels_of(model, x) for model in models.values()]
    turn = torch.arange(len(x)) % 5
    return torch.where(turn == 0, said[1], torch.where(turn == 1, said[2], said[0]))


def share(found: TransferMatrix, surrogate: str, target: str) -> float:
    return float(found.summary()["matrix"][surrogate][target]["share"])


def success_of(found: TransferMatrix, surrogate: str, target: str) -> pd.Series[bool]:
    rows = found.table[(found.table.surrogate == surrogate) & (found.table.target == target) & found.table.correct]
    return rows.set_index("index").success


@pytest.mark.parametrize(
    ("attack", "options"),
    [("pgd", {"steps": 6}), ("pgd", {"steps": 2, "restarts": 3}), ("fgsm", {}), ("square", {"steps": 20})],
)
def test_each_cell_is_what_an_evaluation_of_a_transfer_says(
    attack: str, options: dict[str, Any], models: dict[str, nn.Module], x: Tensor, y: Tensor
) -> None:
    found = rbl.transfer_matrix(models, x, y, attack=attack, eps=EPS, attack_options=options, seed=3)
    right = {name: labels_of(model, x) == y for name, model in models.items()}
    assert all(0.3 < float(one.double().mean()) < 1 for one in right.values())
    for surrogate in models:
        for target in models:
            settings: dict[str, Any] = {"attack_options": options, "seed": 3, "checks": False}
            said = rbl.evaluate(
                *(models[target], x, y),
                attack=f"transfer:{attack}",
                surrogates=[models[surrogate]],
                eps=EPS,
                **settings,
            )
            both = right[surrogate] & right[target]
            ours = success_of(found, surrogate, target)
            assert ours.index.tolist() == both.nonzero()[:, 0].tolist()
            assert ours.tolist() == said.success[both].tolist()
            assert share(found, surrogate, target) == pytest.approx(float(said.success[both].double().mean()))
    cells = found.cells
    assert cells.fooled.between(1, cells.n - 1).any()


def test_the_images_are_those_of_the_evaluation(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    found = rbl.transfer_matrix(models, x, y, **SHORT)
    said = rbl.evaluate(
        *(models["b"], x, y), attack="transfer:pgd", surrogates=[models["a"]], checks=False, **SHORT
    ).samples
    ours = found.table[(found.table.surrogate == "a") & (found.table.target == "b")].reset_index()
    where = ours.correct.to_numpy()
    assert ours.adversarial_hash[where].tolist() == said.adversarial_hash[where].tolist()
    assert ours.content_hash.tolist() == said.content_hash.tolist() == content_hashes(x)
    assert np.allclose(ours.distance[where], said.distance_linf[where], atol=0)
    assert (ours.distance[where] <= EPS).all() and ours.distance[where].max() > 0.99 * EPS
    assert ours.adversarial_prediction[where].tolist() == said.adversarial_prediction[where].tolist()
    unjudged = ours[~where]
    assert len(unjudged) and not unjudged.success.any()
    assert unjudged[["adversarial_prediction", "restart", "distance", "adversarial_hash"]].isna().all(axis=None)


def test_the_noise_is_the_attack_of_that_name(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    found = rbl.transfer_matrix(models, x, y, norm="l2", eps=1.5, attack_options={"steps": 6})
    assert found.matrix.index.tolist() == ["a", "b", "c", "noise"] and found.matrix.columns.tolist() == ["a", "b", "c"]
    for name, model in models.items():
        said = rbl.evaluate(model, x, y, attack="noise", norm="l2", eps=1.5, checks=False)
        right = labels_of(model, x) == y
        assert success_of(found, "noise", name).tolist() == said.success[right].tolist()
        assert share(found, "noise", name) < share(found, name, name) - 0.3
    assert found.table[found.table.surrogate == "noise"].surrogate_prediction.isna().all()


def test_a_likeness_transfers_and_a_stranger_does_not(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    found = rbl.transfer_matrix(models, x, y, **SHORT)
    assert share(found, "a", "b") > share(found, "a", "c") + 0.3
    assert share(found, "b", "a") > share(found, "c", "a") + 0.3
    for name in models:
        assert share(found, name, name) == found.matrix[name].max()


def test_results_do_not_hang_on_the_batch(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    whole, small = (
        rbl.transfer_matrix(models, x, y, batch_size=size, deterministic=True, **SHORT).table for size in (64, 7)
    )
    pd.testing.assert_frame_equal(whole, small, check_exact=True)
    seeds = rbl.transfer_matrix(models, x, y, batch_size=64, deterministic=True, seed=1, **SHORT).table
    assert not seeds.adversarial_hash.equals(whole.adversarial_hash)


def test_images_are_made_once_and_judged_on_all(models: dict[str, nn.Module], x: Tensor) -> None:
    y = labels_of(models["a"], x)
    same = dict.fromkeys(("a", "b"), models["a"])
    watched = Rows().watch(models["a"])
    rbl.transfer_matrix(same, x, y, **SHORT)
    once = watched.count
    watched.count = 0
    rbl.transfer_matrix(same, x, y, eps=EPS, attack_options={"steps": 8})
    # Two steps more: two surrogates, nothing else.
    assert watched.count - once == 2 * 2 * len(x)


def test_numbers_follow_from_the_rows(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    found = rbl.transfer_matrix(models, x, y, **SHORT)
    table = found.table
    by_hand = table[table.correct].groupby(["surrogate", "target"]).success.mean().unstack()
    pd.testing.assert_frame_equal(found.matrix, by_hand.loc[found.matrix.index], check_names=False, check_dtype=False)
    for cell in found.cells.to_dict("records"):
        assert (cell["low"], cell["high"]) == wilson(cell["fooled"], cell["n"])
    said = found.summary()
    assert said["clean_accuracy"] == {
        name: pytest.approx(float((labels_of(model, x) == y).double().mean())) for name, model in models.items()
    }
    assert said["matrix"]["a"]["c"]["share"] == found.matrix["c"]["a"]
    assert (said["attack"], said["attack_options"], said["norm"], said["n"]) == ("pgd", {"steps": 6}, "linf", 50)


def test_no_image_counts(models: dict[str, nn.Module], x: Tensor) -> None:
    y = labels_of(models["a"], x)
    wrong = nn.Sequential(models["a"], Turned())
    found = rbl.transfer_matrix({"a": models["a"], "wrong": wrong}, x, y, **SHORT)
    assert found.matrix.isna().to_numpy().tolist() == [[False, True], [True, True], [False, True]]
    assert found.summary()["matrix"]["a"]["wrong"] == {"share": None, "low": None, "high": None, "fooled": 0, "n": 0}


class Turned(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.roll(1, 1)


def test_a_file_gives_the_matrix_back(models: dict[str, nn.Module], x: Tensor, y: Tensor, tmp_path: Path) -> None:
    import json

    import pyarrow.parquet as pq

    found = rbl.transfer_matrix(models, x, y, **SHORT)
    file = tmp_path / "matrix.parquet"
    found.save(file)
    again = TransferMatrix.read(file)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.specification == found.specification
    assert list(file.parent.iterdir()) == [file]
    said = json.loads(pq.read_schema(file).metadata[METADATA_KEY])
    assert [model["name"] for model in said["models"]] == ["a", "b", "c"]
    assert said["attack"]["resolved"]["steps"] == 6 and said["threat"]["eps"] == EPS
    assert len({model["sha256"] for model in said["models"]}) == 3


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_another_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "other.parquet"
    if content is None:
        pd.DataFrame({"a": [1]}).to_parquet(file)
    else:
        file.write_bytes(content)
    with pytest.raises(RecordError, match=r"other\.parquet: "):
        TransferMatrix.read(file)
    with pytest.raises(RecordError, match="no such file"):
        TransferMatrix.read(tmp_path / "none.parquet")


def test_a_picture_of_any_names(models: dict[str, nn.Module], x: Tensor, y: Tensor, tmp_path: Path) -> None:
    from PIL import Image

    named = dict(
        zip(("torchvision:resnet18=a_long_name_of_weights.pt", "$x$", "\u7f51\u7edc"), models.values(), strict=True)
    )
    found = rbl.transfer_matrix(named, x, y, **SHORT)
    save_matrix(tmp_path / "a.png", found)
    save_matrix(tmp_path / "b.png", found)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    with pytest.raises(UserError, match=r"^--figure must be a path that ends in \.png"):
        save_matrix(tmp_path / "a.jpg", found)


def test_everything_is_left_as_it_was(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    models["a"].train()
    before, state = x.clone(), torch.get_rng_state()
    rbl.transfer_matrix(models, x, y, **SHORT)
    assert torch.equal(x, before) and torch.equal(state, torch.get_rng_state())
    assert models["a"].training and not models["b"].training
    assert all(parameter.requires_grad for model in models.values() for parameter in model.parameters())


def test_progress_tells_every_image_once(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    told: list[int] = []
    rbl.transfer_matrix(models, x, y, batch_size=16, progress=told.append, **SHORT)
    assert sum(told) == 3 * len(x) and min(told) > 0 and len(told) > 12


def test_it_stops_when_asked(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    from robustbench_lite.running import Interrupted

    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(Interrupted, match=r"^stopped before the matrix was whole; nothing is kept$"):
        run_transfer(plan_of(models, x, y), stop=stop)
    assert len(asked) == 6 and all(parameter.requires_grad for parameter in models["a"].parameters())


def test_it_stops_while_an_attack_learns(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    from robustbench_lite.running import Interrupted

    learning: list[int] = []

    class Slow(Learner):
        def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
            for _ in range(9):
                query.labels(batch.ball.x)
                learning.append(1)
            return super().fit(query, batch)

    plan = replace(plan_of(models, x, y), attack=Slow(), attack_options={})
    with pytest.raises(Interrupted, match=r"^stopped before the matrix was whole; nothing is kept$"):
        run_transfer(plan, stop=lambda: len(learning) == 4)
    assert len(learning) == 4


def plan_of(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> TransferPlan:
    data = from_arrays(x, y, classes=4)
    loaded = {name: LoadedModel(model, name, "", 0, {}, "given", None) for name, model in models.items()}
    return TransferPlan(loaded, data, torch.arange(len(x)), "pgd", Threat("linf", EPS), {"steps": 6})


def test_probes_of_the_networks_warn(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    soft = nn.Sequential(models["a"], nn.Softmax(1))
    with pytest.warns(UserWarning, match="^soft: softmax seen"):
        found = rbl.transfer_matrix({"soft": soft, "b": models["b"]}, x, y, **SHORT)
    assert found.specification["warnings"][0].startswith("soft: softmax seen")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attack": "deepfool"}, "^attack transfer:deepfool: deepfool is minimal"),
        ({"attack": "auto"}, "^attack transfer:auto: auto is a portfolio"),
        ({"attack": "spatial"}, "^attack spatial: it has limits of its own, so no noise of the same size"),
        ({"attack": "pdg"}, "^attack: unknown name 'pdg'.*pgd"),
        ({"attack_options": {"stepz": 3}}, "^attack option: pgd has no option 'stepz'"),
        ({"norm": "l3"}, "^norm: unknown name 'l3'"),
        ({"eps": -1.0}, "^eps must be >= 0"),
        ({"batch_size": 0}, "^batch_size must be >= 1"),
        ({"models": {}}, "^models: expected at least one network by name"),
        ({"models": {"noise": mlp()}}, "^models: expected names other than 'noise'"),
        ({"models": {"a": 3}}, r"^models: expected a torch\.nn\.Module for a, got int"),
        ({"models": {"a": mlp(), "b": mlp(3)}}, "^surrogate b: expected 4 logits as the data have classes, got 3"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str, x: Tensor, y: Tensor) -> None:
    settings = {"models": {"a": mlp()}, **SHORT, **({"attack_options": {}} if "attack" in changed else {}), **changed}
    with pytest.raises(UserError, match=message):
        rbl.transfer_matrix(settings.pop("models"), x, y, **settings)


def test_an_instance_of_an_attack_may_be_given(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    from robustbench_lite.attacks.pgd import PGD

    found = rbl.transfer_matrix(models, x, y, attack=PGD(steps=6), eps=EPS)
    pd.testing.assert_frame_equal(found.table, rbl.transfer_matrix(models, x, y, **SHORT).table)


@dataclass(frozen=True)
class Learner(Attack):
    """One step along the sign of the mean gradient over the images it learns from."""

    name: ClassVar[str] = "learner"
    summary: ClassVar[str] = "planted"
    source: ClassVar[str] = "none"

    @property
    def length(self) -> int:
        return 1

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        return {"push": query.gradient(batch.ball.x, get_loss("ce")).gradient.mean(0, keepdim=True).sign()}

    def start(self, query: Query, batch: Batch) -> State:
        return State(batch.ball.x.clone())

    def step(self, query: Query, batch: Batch, state: State) -> State:
        return State(batch.ball.project(state.candidate + batch.learned["push"]))


@pytest.mark.parametrize("given", [True, False])
def test_what_an_attack_learns_it_learns_from_each_surrogate(
    given: bool, models: dict[str, nn.Module], x: Tensor, y: Tensor
) -> None:
    settings: dict[str, Any] = {"eps": 0.2, "fit_data": (x[:20], y[:20]) if given else None}
    found = rbl.transfer_matrix(models, x, y, attack=Learner(), **settings)
    attack = Transfer(Learner(), (Surrogate(models["a"], "a", "", ""),))
    for target in ("a", "b", "c"):
        said = rbl.evaluate(models[target], x, y, attack=attack, checks=False, **settings)
        both = (labels_of(models["a"], x) == y) & (labels_of(models[target], x) == y)
        assert success_of(found, "a", target).tolist() == said.success[both].tolist()
    assert found.specification["attack"].get("fit", {}).get("images") == (20 if given else None)


# -- halves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(4, 4), (3, 5, 7), (2, 9, 3, 3, 5)])
def test_halves_are_disjoint_and_balanced(counts: tuple[int, ...]) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    one, two = halves(labels)
    assert sorted([*one.tolist(), *two.tolist()]) == list(range(len(labels)))
    assert abs(len(one) - len(two)) <= 1
    assert torch.equal(one, one.sort().values) and torch.equal(two, two.sort().values)
    for label in range(len(counts)):
        assert abs(int((labels[one] == label).sum()) - int((labels[two] == label).sum())) <= 1
    assert all(torch.equal(a, b) for a, b in zip(halves(labels), (one, two), strict=True))


def test_a_class_of_one_image_has_no_half() -> None:
    with pytest.raises(UserError, match=r"^--halves: class 1 has only one image to train with"):
        halves(torch.tensor([0, 0, 1]))


def test_a_half_is_a_data_set() -> None:
    whole = rbl.load_dataset("digits", split="train")
    one, two = (half_of(whole, half) for half in (1, 2))
    assert len(one) + len(two) == len(whole) and len({whole.fingerprint, one.fingerprint, two.fingerprint}) == 3
    index = torch.tensor([5, 0, 3])
    assert torch.equal(one.images(index), whole.images(one.places[index]))
    assert torch.equal(one.labels, whole.labels[one.places])
    blocks = list(two.blocks(torch.tensor([4, 2, 9, 1]), 3))
    assert [part.tolist() for part, _, _ in blocks] == [[4, 2, 9], [1]]
    assert torch.equal(torch.cat([block[1] for block in blocks]), two.images(torch.tensor([4, 2, 9, 1])))
    assert torch.equal(torch.cat([block[2] for block in blocks]), two.labels[[4, 2, 9, 1]])
    assert not set(content_hashes(one.images(torch.arange(20)))) & set(
        content_hashes(two.images(torch.arange(len(two))))
    )


def test_a_surrogate_is_what_a_record_names(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> None:
    from robustbench_lite.models.identity import state_sha256

    (said, *_) = rbl.transfer_matrix(models, x, y, **SHORT).specification["models"]
    assert said["sha256"] == state_sha256(models["a"])
    assert (
        {"name", "sha256", "layout_sha256", "source_sha256"} == Surrogate.promised("a").record().keys() <= said.keys()
    )
