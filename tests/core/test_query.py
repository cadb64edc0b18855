"""What an attack may ask, what it costs, and what the query notices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.errors import AccessError
from robustbench_lite.losses import cross_entropy, margin
from robustbench_lite.network import Network
from robustbench_lite.streams import normal_like
from robustbench_lite.threat import Threat

from .nets import Asks, ask, binary, finish, images, labels_of, make_engine, mlp


class Noisy(nn.Module):
    """Logits that tell which noise was drawn."""

    def forward(self, x: Tensor) -> Tensor:
        return normal_like(x).flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("access", "logits", "gradient"), [("label", False, False), ("score", True, False), ("gradient", True, True)]
)
def test_an_attack_gets_what_it_declares_and_no_more(access: str, logits: bool, gradient: bool) -> None:
    x = images(3)
    query = ask(Network(mlp(), n_classes=4), x, torch.zeros(3, dtype=torch.int64), access=access)
    assert query.labels(x).shape == (3,)
    assert query.n_classes == 4
    for allowed, question in ((logits, lambda: query.logits(x)), (gradient, lambda: query.gradient(x, margin))):
        if allowed:
            question()
        else:
            forwards = query.forwards.clone()
            with pytest.raises(AccessError, match=f"attack test: it declares {access} access and asked for"):
                question()
            assert torch.equal(query.forwards, forwards)


def test_an_attack_that_asks_for_more_fails_at_run_time() -> None:
    model, x = mlp(), images(6)
    peeks = Asks.make(lambda query, batch, state: query.gradient(state.candidate, margin), access="score")
    engine = make_engine(model, x, labels_of(model, x), peeks, Threat("linf", 0.1))
    with pytest.raises(AccessError, match="attack planted: it declares score access and asked for gradient access"):
        finish(engine)


@pytest.mark.parametrize("eot", [1, 4])
def test_counts_of_repeated_rows_are_exact(eot: int) -> None:
    x, y = images(4), torch.zeros(4, dtype=torch.int64)
    network = Network(mlp(), n_classes=4, eot=eot)
    query = ask(network, x, y)
    rows = torch.tensor([2, 0, 2, 2, 1])
    query.logits(x[rows], rows=rows)
    assert query.forwards.tolist() == [eot, eot, 3 * eot, 0]
    query.gradient(x[rows[:2]], margin, rows=rows[:2])
    assert query.forwards.tolist() == [2 * eot, eot, 4 * eot, 0]
    assert query.backwards.tolist() == [eot, 0, eot, 0]
    query.gradient(x, cross_entropy)
    assert query.backwards.tolist() == [2 * eot, eot, 2 * eot, eot]
    query.logits(x[:0], rows=torch.empty(0, dtype=torch.int64))
    assert int(query.forwards.sum()) == network.forward_rows
    assert int(query.backwards.sum()) == network.backward_rows


@pytest.mark.parametrize("eot", [1, 3])
def test_no_two_questions_see_the_same_noise(eot: int) -> None:
    x, y = images(3), torch.zeros(3, dtype=torch.int64)
    query = ask(Network(Noisy(), n_classes=3, eot=eot), x, y, access="score")
    rows = torch.tensor([1, 1, 0, 1, 2])
    answers = [query.logits(x[rows], rows=rows), query.logits(x), query.logits(x[rows], rows=rows), query.logits(x)]
    everything = torch.cat(answers)
    assert len(set(map(tuple, everything.tolist()))) == len(everything)


def test_noise_depends_on_the_sample_and_on_what_it_asked_before_alone() -> None:
    x, y = images(3), torch.zeros(3, dtype=torch.int64)
    network = Network(Noisy(), n_classes=3)
    busy, calm = (ask(network, x, y, access="score") for _ in range(2))
    rows = torch.tensor([0, 2, 2])
    busy.logits(x[rows], rows=rows)
    assert torch.equal(busy.logits(x)[1], calm.logits(x)[1])
    one_by_one = ask(network, x, y, access="score")
    for row in ([2], [0], [2]):
        one_by_one.logits(x[row], rows=torch.tensor(row))
    assert torch.equal(one_by_one.logits(x), ask_again(network, x, y, rows))


def ask_again(network: Network, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    query = ask(network, x, y, access="score")
    query.logits(x[rows], rows=rows)
    return query.logits(x)


def test_rows_answer_as_the_samples_do() -> None:
    x, y = images(5), torch.tensor([0, 1, 2, 3, 0])
    query = ask(Network(mlp(), n_classes=4), x, y, targets=(y + 1) % 4)
    rows = torch.tensor([4, 1, 1])
    some = query.gradient(x[rows], cross_entropy, rows=rows)
    whole = query.gradient(x, cross_entropy)
    assert torch.allclose(some.gradient, whole.gradient[rows], atol=1e-6)
    assert torch.allclose(query.logits(x[rows], rows=rows), query.logits(x)[rows], atol=1e-6)


def test_extra_arguments_of_a_loss_travel_with_their_rows() -> None:
    x, y = images(6), torch.zeros(6, dtype=torch.int64)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def loss(logits: Tensor, y: Tensor, targets: Tensor | None, weight: Tensor) -> Tensor:
        return margin(logits, y, targets) * weight

    plain = ask(Network(mlp(), n_classes=4), x, y).gradient(x, margin).gradient
    for network in (Network(mlp(), n_classes=4), Network(mlp(), n_classes=4, block=4)):
        found = ask(network, x, y).gradient(x, loss, weight).gradient
        assert torch.allclose(found, plain * weight.reshape(-1, 1, 1, 1), atol=1e-5)


def test_answers_carry_no_graph_and_gradients_are_the_callers_own() -> None:
    x, y = images(3).requires_grad_(), torch.zeros(3, dtype=torch.int64)
    query = ask(Network(mlp(), n_classes=4), x.detach(), y)
    answer = query.gradient(x, margin)
    assert not answer.gradient.requires_grad
    assert not answer.logits.requires_grad
    assert not query.logits(x).requires_grad
    again = query.gradient(x, margin).gradient
    answer.gradient.zero_()
    assert again.any()


def test_claims_are_legal_images_only() -> None:
    plane = binary()
    x = images(40, low=0.3, high=0.7)
    y = labels_of(plane, x)
    eps = float(plane.distance(x, "linf").median()) + 1e-5
    threat = Threat("linf", eps)
    query = ask(Network(plane, n_classes=2), x, y, threat=threat)
    away = (1 - 2 * y).reshape(-1, 1, 1, 1) * plane.weight.detach().sign()
    query.logits(x + 0.3 * away)  # fools, but outside the ball
    assert not len(query.claims()[0])
    query.logits(x + eps * away)
    rows, claimed = query.claims()
    fooled = plane.distance(x, "linf") < eps
    assert 0 < int(fooled.sum()) < 40
    assert rows.tolist() == fooled.nonzero()[:, 0].tolist()
    assert threat.around(x[rows]).contains(claimed).all()
    assert (labels_of(plane, claimed) != y[rows]).all()


def test_the_first_claim_of_a_sample_counts_and_no_second() -> None:
    plane, threat = binary(), Threat("linf", 1.0)
    x = images(3, low=0.4, high=0.6)
    y = labels_of(plane, x)
    flipped = 1 - x
    assert (labels_of(plane, flipped) != y).all()
    query = ask(Network(plane, n_classes=2), x, y, threat=threat)
    rows = torch.tensor([1, 1, 0, 1])
    shown = flipped[rows] + torch.tensor([0.01, 0.02, 0.0, 0.03]).reshape(-1, 1, 1, 1) * 0
    shown[1] += (flipped[1] - x[1]).sign() * 0.05
    query.logits(shown, rows=rows)
    query.logits(flipped)
    samples, claimed = query.claims()
    assert sorted(samples.tolist()) == [0, 1, 2]
    assert torch.allclose(claimed[samples.tolist().index(1)], flipped[1], atol=1e-6)


def test_a_target_is_claimed_only_where_it_is_reached() -> None:
    model, x = mlp(), images(50)
    y = labels_of(model, x)
    targets = (y + 1) % 4
    query = ask(Network(model, n_classes=4), x, y, threat=Threat("linf", 1.0), targets=targets)
    shown = images(50, seed=9)
    query.logits(shown)
    assert query.claims()[0].tolist() == (labels_of(model, shown) == targets).nonzero()[:, 0].tolist()


def test_some_rows_in_low_precision_and_some_not() -> None:
    model, x, y = mlp(), images(6), torch.zeros(6, dtype=torch.int64)
    low = torch.tensor([True, False, True, False, False, True])
    network = Network(model, n_classes=4, precision="bf16")
    query = ask(network, x, y, low=low)
    mixed, exact = query.gradient(x, margin), ask(network, x, y).gradient(x, margin)
    differs = ((mixed.logits - exact.logits).abs() > 1e-4).any(1)
    assert torch.equal(differs, low)
    assert torch.allclose(mixed.gradient[~low], exact.gradient[~low], atol=1e-6)
    rows = torch.tensor([1, 0, 0, 5, 3])
    again = (query.logits(x[rows], rows=rows) - exact.logits[rows]).abs() > 1e-4
    assert torch.equal(again.any(1), low[rows])
