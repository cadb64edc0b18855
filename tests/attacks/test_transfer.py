"""Transfer: the attack inside on the surrogates, every step; of the network under test the verdict alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Attack
from robustbench_lite.conformance import check_attack, failed
from robustbench_lite.errors import UserError
from robustbench_lite.perturbation import make_attack
from robustbench_lite.surrogate import MeanLogits, MeanLoss, Surrogate, Transfer
from robustbench_lite.threat import Threat

from ..core.nets import Rows, images, labels_of, mlp, noise_of

STILL = {"random_start": False, "steps": 8}


@pytest.fixture
def model() -> nn.Module:
    return mlp(scale=4.0)


@pytest.fixture
def x() -> Tensor:
    return images(60)


def made(*surrogates: nn.Module, attack: str = "pgd", **options: Any) -> Attack:
    given = [Surrogate(module, f"net{k}", "", "") for k, module in enumerate(surrogates)]
    return make_attack(f"transfer:{attack}", options, Threat("linf", 0.1), surrogates=given)


def mean_gradient_loop(models: list[nn.Module], x: Tensor, y: Tensor, *, of: str, eps: float, steps: int) -> Tensor:
    """Ascent of an ensemble's log-odds against the label, by the sign of their gradient, in plain torch."""
    seen = x.clone()
    for _ in range(steps):
        seen.requires_grad_()
        logits = torch.stack([model(seen) for model in models])
        each = [logits.mean(0)] if of == "logits" else list(logits)
        odds = [torch.log((1 - one.softmax(1)) / one.softmax(1)).gather(1, y[:, None]).sum() for one in each]
        loss = torch.stack(odds).mean()
        (gradient,) = torch.autograd.grad(loss, seen)
        seen = (seen.detach() + 2.5 * eps / steps * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return seen.detach()


@pytest.mark.parametrize(("attack", "options"), [("pgd", STILL), ("pgd", {**STILL, "momentum": 0.9}), ("fgsm", {})])
def test_the_target_as_its_own_surrogate_gives_the_end_of_the_attack_itself(
    attack: str, options: dict[str, Any], model: nn.Module, x: Tensor
) -> None:
    y = labels_of(model, x)
    ends = rbl.perturb(model, x, y, attack=attack, eps=0.1, attack_options=options)
    found = rbl.evaluate(
        model, x, y, attack=f"transfer:{attack}", eps=0.1, attack_options=options, surrogates=[model], batch_size=16
    )
    assert found.adversarial is not None
    assert torch.equal(found.adversarial, ends)
    assert torch.equal(found.success, labels_of(model, ends) != y)
    assert 0.2 < float(found.success.double().mean()) < 1


@pytest.mark.parametrize("restarts", [1, 3])
def test_the_target_is_asked_for_verdicts_alone(restarts: int, model: nn.Module, x: Tensor) -> None:
    other = mlp(seed=5, scale=4.0)
    y = labels_of(model, x)
    seen, beside = Rows().watch(model), Rows().watch(other)
    options = {"steps": 7, "restarts": restarts}
    found = rbl.evaluate(
        *(model, x, y), attack="transfer:pgd", eps=0.05, attack_options=options, surrogates=[other], checks=False
    )
    rows, calls = found.samples, found.run.specification.calls
    # The clean pass, and one for each end that was judged.
    tried = rows.forwards - 1
    assert (tried[rows.attacked & ~rows.success] == restarts).all()
    assert tried[rows.success].between(1, restarts).all()
    assert (rows.backwards == 0).all()
    # Three images are shown to see what kind of network it is (`adapt`), one to count the classes.
    assert seen.count == 4 + found.forwards + calls["check_forwards"]
    # Every step of every restart that began; four images are the look at what it is.
    assert beside.count == 4 + 7 * int(tried.sum())
    assert 0 < found.robust_accuracy < 1


@pytest.mark.parametrize("ensemble", ["logits", "loss"])
def test_an_ensemble_is_the_mean_made_by_hand(ensemble: str, x: Tensor) -> None:
    models = [mlp(seed=seed, scale=4.0) for seed in (3, 4)]
    y = labels_of(models[0], x)
    options = {**STILL, "ensemble": ensemble}
    found = rbl.evaluate(models[0], x, y, attack="transfer:pgd", eps=0.1, attack_options=options, surrogates=models)
    by_hand = mean_gradient_loop(models, x, y, of=ensemble, eps=0.1, steps=8)
    assert found.adversarial is not None
    near = (found.adversarial - by_hand).flatten(1).abs().amax(1) < 1e-5
    assert float(near.double().mean()) > 0.95  # a gradient of nearly zero may have either sign


def test_the_two_ensembles_have_one_answer_and_two_gradients(x: Tensor) -> None:
    from robustbench_lite.losses import get_loss
    from robustbench_lite.network import Network

    models = [mlp(seed=seed, scale=4.0) for seed in (3, 4)]
    y = labels_of(models[0], x)
    fused, apart = Network(MeanLogits(models)), MeanLoss(models)
    one = fused.gradient(x, noise_of(60), get_loss("ce"), y, None)
    two = apart.gradient(x, noise_of(60), get_loss("ce"), y, None)
    assert torch.allclose(one[1], two[1], atol=1e-6)
    assert torch.allclose(apart.logits(x, noise_of(60)), two[1], atol=1e-6)
    assert (one[0] - two[0]).abs().max() > 1e-3
    each = [Network(model).gradient(x, noise_of(60), get_loss("ce"), y, None)[0] for model in models]
    assert torch.allclose(two[0], (each[0] + each[1]) / 2, atol=1e-6)


def test_networks_trained_alike_are_fooled_together_and_by_noise_they_are_not() -> None:
    data = rbl.load_dataset("digits", split="train")
    recipe = {"epochs": 20, "lr": 0.1, "augment": "none"}
    nets = []
    for half in (0, 1):
        places = torch.arange(half, len(data), 2)
        part = dataclasses.replace(data, labels=data.labels[places], array=data.array[places])  # type: ignore[call-arg, attr-defined]
        with torch.random.fork_rng():
            torch.manual_seed(half)
            net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 48), nn.ReLU(), nn.Linear(48, 10))
        nets.append(rbl.train_model(net, part, recipe=rbl.Recipe(seed=half, **recipe)))  # type: ignore[arg-type]
    test = rbl.load_dataset("digits", split="test")
    x, y = test.images(torch.arange(200)), test.labels[:200]
    settings: dict[str, Any] = {"eps": 0.1, "checks": False}
    moved = rbl.evaluate(nets[1], x, y, attack="transfer:pgd", surrogates=[nets[0]], **settings)
    itself = rbl.evaluate(nets[1], x, y, attack="transfer:pgd", surrogates=[nets[1]], **settings)
    noise = rbl.evaluate(nets[1], x, y, attack="noise", **settings)
    assert noise.clean_accuracy > 0.9
    assert itself.robust_accuracy < moved.robust_accuracy < noise.robust_accuracy - 0.2


def test_an_attack_by_scores_is_carried_over(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    found = rbl.evaluate(
        *(model, x, y), attack="transfer:square", eps=0.2, attack_options={"steps": 60}, surrogates=[model]
    )
    assert found.robust_accuracy < 0.7
    assert (found.samples.forwards == 2).all()


def test_it_aims_where_the_attack_inside_aims(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    settings: dict[str, Any] = {"eps": 0.2, "target": "next", "surrogates": [model], "attack_options": STILL}
    rows = rbl.evaluate(model, x, y, attack="transfer:pgd", **settings).samples
    assert rows.success.mean() > 0.3
    assert (rows.adversarial_prediction == (rows.label + 1) % 4)[rows.success].all()


def test_results_hang_neither_on_the_batch_nor_on_the_order(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    other = mlp(seed=5, scale=4.0)
    settings: dict[str, Any] = {"attack": "transfer:pgd", "eps": 0.1, "surrogates": [other], "deterministic": True}
    whole = rbl.evaluate(model, x, y, batch_size=60, **settings)
    small = rbl.evaluate(model, x.flip(0), y.flip(0), batch_size=7, **settings)
    assert whole.adversarial is not None and small.adversarial is not None
    assert torch.equal(whole.adversarial, small.adversarial.flip(0))


def test_the_surrogate_is_left_as_it_was(model: nn.Module, x: Tensor) -> None:
    other = mlp(seed=5).train()
    rbl.evaluate(model, x, labels_of(model, x), attack="transfer:fgsm", surrogates=[other])
    assert other.training
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_the_record_tells_surrogates_apart(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    others = [mlp(seed=5), mlp(seed=6)]

    def run(*surrogates: nn.Module, attack: str = "transfer:fgsm", **options: Any) -> Any:
        found = rbl.evaluate(model, x, y, attack=attack, surrogates=surrogates, attack_options=options)
        return found.run.specification

    told = [run(others[0]), run(others[1]), run(*others), run(*others, ensemble="loss"), run(attack="fgsm")]
    assert len({one.run_id() for one in told}) == 5
    assert run(others[0]).run_id() == told[0].run_id()
    assert told[0].attack.name == "transfer:fgsm" and told[0].attack.access == "label"
    (surrogate,) = told[0].attack.resolved["surrogates"]
    assert surrogate["name"] == "Sequential" and len(surrogate["sha256"]) == 64
    assert told[3].attack_options == "ensemble=loss surrogate=Sequential + Sequential"
    assert type(told[0]).from_json(told[0].to_json()) == told[0]


@pytest.mark.parametrize("attack", ["pgd", "square"])
@pytest.mark.parametrize("count", [1, 2])
def test_it_keeps_the_contract(attack: str, count: int) -> None:
    shape = (1, 8, 8)
    nets = [mlp(5, shape=shape, seed=seed) for seed in range(count)]
    checks = check_attack(made(*nets, attack=attack, steps=4), shapes=[shape])
    # What fools these surrogates need not fool the linear layer of that check.
    assert [check for check in failed(checks) if check.name != "success"] == []


@pytest.mark.parametrize(
    ("attack", "surrogates", "message"),
    [
        ("transfer:pgd", 0, "^attack transfer:pgd: expected at least one surrogate, got none; give --surrogate MODEL$"),
        ("pgd", 1, "^surrogate: attack pgd attacks the model itself; give transfer:pgd, or no surrogate$"),
        ("transfer:ddn", 1, "^attack transfer:ddn: ddn is minimal"),
        ("transfer:deepfool", 1, "^attack transfer:deepfool: deepfool is minimal and ends at the surrogate's boundary"),
        ("transfer:auto", 1, "^attack transfer:auto: auto is a portfolio of attacks; give one of its parts$"),
        ("transfer:transfer:pgd", 1, "^attack transfer:transfer:pgd: a transfer of a transfer is one"),
        ("transfer:pdg", 1, "^attack: unknown name 'pdg'.*pgd"),
        ("transfer:", 1, "^attack: transfer: needs an attack to carry over"),
    ],
)
def test_what_is_refused(attack: str, surrogates: int, message: str, model: nn.Module, x: Tensor) -> None:
    given = [mlp(seed=5)] * surrogates
    with pytest.raises(UserError, match=message):
        rbl.evaluate(model, x, labels_of(model, x), attack=attack, surrogates=given)


def test_options_and_surrogates_that_do_not_fit(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)

    def run(surrogates: list[Any], **options: Any) -> None:
        rbl.evaluate(model, x, y, attack="transfer:pgd", surrogates=surrogates, attack_options=options)

    with pytest.raises(UserError, match=r"^ensemble must be one of logits, loss, got 'votes'"):
        run([model], ensemble="votes")
    with pytest.raises(UserError, match=r"^attack option: pgd has no option 'stepz'"):
        run([model], stepz=3)
    with pytest.raises(UserError, match=r"^surrogate Sequential: expected 4 logits as the data have classes, got 3"):
        run([mlp(3)])
    with pytest.raises(UserError, match=r"^surrogates: expected networks or names, got int"):
        run([3])
    with pytest.raises(UserError, match="mlp comes untrained"):
        run(["mlp"])


def test_an_instance_may_be_given(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    attack = made(model, random_start=False, steps=8)
    assert isinstance(attack, Transfer) and attack.name == "transfer:pgd"
    assert attack.length == 8 and attack.norms == ("linf", "l2", "l1", "l0")
    found = rbl.evaluate(model, x, y, attack=attack, eps=0.1)
    assert found.adversarial is not None
    assert torch.equal(found.adversarial, rbl.perturb(model, x, y, attack=attack, eps=0.1))
