"""An attack on one batch, as training uses it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.attack import Batch, State
from robustbench_lite.attacks.noise import Noise
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.errors import AccessError, UserError
from robustbench_lite.losses import margin
from robustbench_lite.perturbation import attempt, make_attack, perturb
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

from .nets import Asks, Rows, images, labels_of, mlp


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["pgd", "fgsm", "noise"])
def test_candidates_are_in_the_ball_and_the_box(norm: str, attack: str) -> None:
    model, x = mlp(), images(20)
    y = labels_of(model, x)
    eps = 0.1 if norm == "linf" else 0.5
    seen = perturb(model, x, y, attack=attack, norm=norm, eps=eps)
    assert Threat(norm, eps).around(x).contains(seen).all()
    assert not torch.equal(seen, x)
    assert not seen.requires_grad
    if attack != "noise":
        assert (margin(model(seen), y) > margin(model(x), y)).all()


def test_a_target_is_approached() -> None:
    model, x = mlp(), images(20)
    y = labels_of(model, x)
    targets = (y + 1) % 4
    seen = perturb(model, x, y, eps=0.1, targets=targets)
    assert (margin(model(seen), y, targets) > margin(model(x), y, targets)).all()


def test_it_costs_its_steps_and_no_more() -> None:
    model, x = mlp(), images(6)
    y = labels_of(model, x)
    rows = Rows().watch(model)
    perturb(model, x, y, attack_options={"steps": 7})
    assert rows.count == 7 * 6


def test_it_leaves_model_inputs_and_random_state_alone() -> None:
    layer = nn.Linear(36, 3)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Dropout(), layer).train()
    x, y = images(8), torch.zeros(8, dtype=torch.int64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept, state = x.clone(), torch.random.get_rng_state()
    perturb(model, x, y, eps=0.2)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), layer.weight)
    assert gradient.any()


def test_a_seed_decides() -> None:
    model, x = mlp(), images(8)
    y = labels_of(model, x)
    first = perturb(model, x, y, seed=1)
    assert torch.equal(perturb(model, x, y, seed=1), first)
    assert not torch.equal(perturb(model, x, y, seed=2), first)


def test_equal_images_at_two_places_get_noise_of_their_own() -> None:
    x = images(1).repeat(2, 1, 1, 1)
    seen = perturb(mlp(), x, torch.zeros(2, dtype=torch.int64), attack=Noise(), eps=0.1)
    assert not torch.equal(seen[0], seen[1])


def test_each_step_knows_its_number() -> None:
    steps: list[list[int]] = []

    def note(query: Query, batch: Batch, state: State) -> State:
        steps.append(batch.step.tolist())
        return state

    attack = Asks.make(note, length=3)
    perturb(mlp(), images(2), torch.zeros(2, dtype=torch.int64), attack=attack)
    assert steps == [[0, 0], [1, 1], [2, 2]]


def test_the_access_level_holds_here_too() -> None:
    attack = Asks.make(lambda q, b, s: q.gradient(s.candidate, margin), access="label")
    with pytest.raises(AccessError):
        perturb(mlp(), images(2), torch.zeros(2, dtype=torch.int64), attack=attack)


def test_a_made_attack_has_its_defaults_filled_in() -> None:
    threat = Threat("linf", 0.2)
    made = make_attack("pgd", {"steps": "10"}, threat)
    assert made == PGD(steps=10, step_size=2.5 * 0.2 / 10)
    assert make_attack(PGD(step_size=0.01), None, threat) == PGD(step_size=0.01)
    assert make_attack("pgd", None, threat, resolve=False) == PGD()


def test_norms_that_an_attack_does_not_have() -> None:
    only_linf = Asks.make(lambda q, b, s: s, norms=("linf",))
    with pytest.raises(UserError, match="norm of attack planted: unknown name 'l2'"):
        make_attack(only_linf, None, Threat("l2", 0.2))


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.int64)])
def test_a_file_that_is_no_attack(labels: Tensor, tmp_path: object) -> None:
    file = f"{tmp_path}/thing.py"
    with open(file, "w") as out:
        out.write("class Thing:\n    pass\n")
    with pytest.raises(UserError, match=r"is no subclass of robustbench_lite\.Attack"):
        perturb(mlp(), images(2), labels, attack=f"{file}:Thing")


def test_an_attempt_says_what_it_cost() -> None:
    model, x = mlp(), images(20)
    made = attempt(model, x, labels_of(model, x), attack="pgd", attack_options={"steps": 7})
    assert made.forwards.tolist() == made.backwards.tolist() == [7] * 20
    assert torch.equal(made.candidate, perturb(model, x, labels_of(model, x), attack_options={"steps": 7}))


def test_an_attempt_in_parts_is_that_on_the_whole() -> None:
    """With places of their own and blocks of fixed rows nothing depends on the company, to the last bit."""
    model, x = mlp(), images(21)
    y, place = labels_of(model, x), torch.arange(100, 121)
    whole = attempt(model, x, y, place=place, block=8).candidate
    parts = [slice(0, 5), slice(5, 6), slice(6, 21)]
    apart = [attempt(model, x[part], y[part], place=place[part], block=8).candidate for part in parts]
    assert torch.equal(torch.cat(apart), whole)
    assert not torch.equal(attempt(model, x, y, block=8).candidate, whole)  # it starts at random, by place
