"""Random numbers that belong to a sample, and to nobody else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lite.streams import (
    Stream,
    content_hashes,
    drawing,
    hash_text,
    normal_like,
    uniform_like,
    uniform_noise,
)

stats = pytest.importorskip("scipy.stats")


def streams(count: int, *, seed: int = 0) -> Stream:
    return Stream.of([hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)], seed=seed)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 6))
def test_a_row_has_the_same_numbers_in_any_company(order: list[int], cut: int) -> None:
    whole, index = streams(7), torch.tensor(order)
    for part in (index[:cut], index[cut:]):
        some = Stream(whole.keys[part])
        assert torch.equal(some.uniform((2, 3)), whole.uniform((2, 3))[part])
        assert torch.equal(some.normal((5,)), whole.normal((5,))[part])
        assert torch.equal(some.integers(9), whole.integers(9)[part])
        assert torch.equal(some.child("a").child(part).keys, whole.child("a").child(torch.arange(7)).keys[part])


def test_a_draw_is_the_same_whether_asked_for_one_or_for_all() -> None:
    stream = streams(4)
    draws = torch.tensor([3, 0, 3, 7])
    assert torch.equal(stream.uniform((2,), draws)[2], stream.uniform((2,), 3)[2])
    assert torch.equal(stream.normal((3,), draws)[1], stream.normal((3,))[1])


def test_asking_consumes_nothing() -> None:
    stream = streams(3)
    first = stream.normal((4,))
    stream.uniform((100,))
    assert torch.equal(stream.normal((4,)), first)


def uncorrelated(a: Tensor, b: Tensor) -> bool:
    assert a.numel() == b.numel() > 10_000
    r = float(np.corrcoef(a.flatten().double().numpy(), b.flatten().double().numpy())[0, 1])
    return bool(abs(r) < 4 / a.numel() ** 0.5)


def test_streams_of_any_kind_are_independent() -> None:
    stream, place = streams(400), torch.arange(400)
    base = stream.uniform((64,))
    others = {
        "draw": stream.uniform((64,), 1),
        "far draw": stream.uniform((64,), 10**6),
        "text": stream.child("a").uniform((64,)),
        "number": stream.child(torch.zeros_like(place)).uniform((64,)),
        "next number": stream.child(torch.ones_like(place)).uniform((64,)),
        "negative number": stream.child(torch.full_like(place, -1)).uniform((64,)),
        "text of the number": stream.child("0").uniform((64,)),
        "twice": stream.child("a").child("a").uniform((64,)),
        "seed": streams(400, seed=1).uniform((64,)),
        "next sample": base.roll(1, 0),
        "next place": base.roll(1, 1),
    }
    made = {"itself": base, **others}
    names = list(made)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert uncorrelated(made[one], made[other]), (one, other)


def test_the_order_of_children_matters() -> None:
    stream = streams(5)
    assert not torch.equal(stream.child("a").child("b").keys, stream.child("b").child("a").keys)


def test_keys_do_not_collide() -> None:
    stream = Stream(torch.arange(200)).child("seed 0")
    keys = [stream.keys, *(stream.child(f"eot {k}").keys for k in range(50))]
    keys += [stream.child(torch.full((200,), k)).keys for k in range(-50, 50)]
    assert len(set(torch.cat(keys).tolist())) == 200 * 151


@pytest.mark.parametrize("keys", [torch.arange(500), torch.arange(500) << 32, torch.arange(500) * -(2**40)])
def test_uniform_is_uniform_even_for_keys_in_a_row(keys: Tensor) -> None:
    numbers = Stream(keys).uniform((80,))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(numbers[:, 0].numpy(), "uniform").pvalue > 1e-4


def test_uniform_never_rounds_up_to_one() -> None:
    assert torch.tensor((2**24 - 1) * 2.0**-24, dtype=torch.float32) < 1
    assert Stream(torch.arange(20_000)).uniform((50,)).max() < 1


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_normal_is_normal(count: int) -> None:
    numbers = Stream(torch.arange(60_000 // count)).normal((count,))
    assert numbers.shape == (60_000 // count, count)
    values = numbers.flatten().double()
    n = len(values)
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((values**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-4


def test_the_halves_of_a_normal_draw_are_independent() -> None:
    numbers = Stream(torch.arange(2000)).normal((20,))
    assert uncorrelated(numbers[:, :10], numbers[:, 10:])
    assert uncorrelated(numbers[:, :10].square(), numbers[:, 10:].square())


def test_integers_are_uniform_below_the_limit_of_each_row() -> None:
    stream = Stream(torch.arange(6000))
    drawn = stream.integers(6)
    assert stats.chisquare(torch.bincount(drawn, minlength=6).numpy()).pvalue > 1e-4
    high = torch.tensor([1, 2, 5]).repeat(2000)
    each = stream.integers(high, draw=1)
    assert (each >= 0).all()
    assert (each < high).all()
    for limit in (2, 5):
        assert stats.chisquare(torch.bincount(each[high == limit], minlength=limit).numpy()).pvalue > 1e-4


def test_equal_images_have_equal_streams_and_a_seed_changes_all() -> None:
    x = torch.rand(3, 1, 4, 4)
    x[2] = x[0]
    keys = Stream.of(content_hashes(x), seed=0).keys
    assert keys[0] == keys[2] != keys[1]
    assert (Stream.of(content_hashes(x), seed=1).keys != keys).all()


def test_content_hash_is_of_float32_bytes_in_c_order() -> None:
    x = torch.rand(2, 3, 4, 5)
    expected = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in x]
    assert content_hashes(x) == expected
    assert content_hashes(x.to(memory_format=torch.channels_last)) == expected
    assert content_hashes(x.double()) == expected
    assert content_hashes(x.requires_grad_()) == expected


def test_hash_of_a_text_is_the_same_in_every_process() -> None:
    assert hash_text("network") == int.from_bytes(hashlib.sha256(b"network").digest()[:8], "little", signed=True)


@pytest.mark.parametrize(("own", "torchs"), [(normal_like, torch.randn_like), (uniform_like, torch.rand_like)])
def test_noise_outside_an_evaluation_is_torchs_own(own: object, torchs: object) -> None:
    x = torch.zeros(4, 3)
    torch.manual_seed(5)
    first = own(x)  # type: ignore[operator]
    torch.manual_seed(5)
    assert torch.equal(first, torchs(x))  # type: ignore[operator]


def test_noise_inside_is_each_rows_own_and_differs_from_call_to_call() -> None:
    x, stream, draw = torch.zeros(6, 2, 3), streams(6), torch.tensor([0, 0, 5, 0, 1, 2])
    before = torch.random.get_rng_state()
    with drawing(stream, draw):
        first, second, third = normal_like(x), normal_like(x), uniform_like(x)
    with drawing(Stream(stream.keys[2:5]), draw[2:5]):
        alone = normal_like(x[2:5])
    assert torch.equal(alone, first[2:5])
    with drawing(stream, draw + torch.tensor([0, 0, 0, 0, 0, 1])):
        later = normal_like(x)
    assert (later != first).flatten(1).any(1).tolist() == [False] * 5 + [True]
    assert not torch.equal(first, second)
    assert first.std() > 0.3
    assert 0 <= third.min() <= third.max() < 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_keeps_the_type_of_the_image() -> None:
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    with drawing(streams(2), torch.zeros(2, dtype=torch.int64)):
        assert normal_like(x).dtype == torch.bfloat16


def test_drawing_ends_when_an_exception_leaves_it() -> None:
    with pytest.raises(KeyError), drawing(streams(2), torch.zeros(2, dtype=torch.int64)):
        raise KeyError
    torch.manual_seed(1)
    first = normal_like(torch.zeros(2, 2))
    torch.manual_seed(1)
    assert torch.equal(first, torch.randn(2, 2))


def test_uniform_noise_is_uniform_and_its_neighbours_know_nothing_of_each_other() -> None:
    torch.manual_seed(3)
    x = torch.zeros(401, 3, 7, 9, dtype=torch.float64)  # not a multiple of the four that come of a draw
    noise = uniform_noise(x)
    assert noise.shape == x.shape
    assert noise.dtype == x.dtype
    flat = noise.flatten()
    assert -1 <= flat.min() < -0.999
    assert 0.999 < flat.max() < 1
    deciles = torch.histc(flat, 10, -1, 1) / flat.numel()
    assert (deciles - 0.1).abs().max() < 4 * (0.09 / flat.numel()) ** 0.5
    assert all(uncorrelated(flat[k:], flat[:-k]) for k in (1, 2, 3, 4))
    torch.manual_seed(3)
    assert torch.equal(uniform_noise(x), noise)
    assert not torch.equal(uniform_noise(x), noise)
