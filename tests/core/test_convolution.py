"""The folded gradient is the library's own gradient, and is taken only where it is said to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite import convolution
from robustbench_lite.convolution import FoldedConvolutions, _Folded


def _gradient(x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    leaf = x.clone().requires_grad_()
    logits = F.conv2d(leaf, weight, *geometry)
    slope = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    return torch.autograd.grad(logits, leaf, slope)[0]


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(9, 14), st.integers(9, 14)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.one_of(st.integers(1, 4).map(lambda step: (step, step)), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.integers(1, 2),
)
def test_equals_the_librarys_gradient(
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, channels, *size), generator=generator)
    weight = torch.randn((5, channels, *kernel), generator=generator)
    geometry = (None, stride, padding, dilation)
    expected = _gradient(x.double(), weight.double(), *geometry)
    with FoldedConvolutions():
        found = _gradient(x, weight, *geometry)
    assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_every_alignment_of_kernel_stride_padding_and_size(step: int) -> None:
    """Kernels that overlap by half or more are differentiated phase by phase: each remainder of size and padding."""
    for kernel in range(2 * step, 3 * step + 1):
        for padding in range(kernel):
            for extra in range(step):
                size = max(1, kernel - 2 * padding) + extra, max(1, kernel - 2 * padding) + step + 1
                generator = torch.Generator().manual_seed(kernel)
                x = torch.rand((2, 3, *size), generator=generator)
                weight = torch.randn((2, 3, kernel, kernel), generator=generator)
                geometry = (None, step, padding)
                expected = _gradient(x.double(), weight.double(), *geometry)
                with FoldedConvolutions():
                    found = _gradient(x, weight, *geometry)
                assert torch.allclose(found.double(), expected, atol=1e-4), (kernel, padding, size)


@pytest.mark.parametrize("case", [(1, 29, 4, 2, 2), (3, 224, 7, 2, 3), (3, 227, 8, 4, 4), (3, 224, 11, 4, 2)])
def test_first_layers_of_known_networks(case: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    own = convolution._of_phases

    def phases(gradient: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        seen.append(tuple(weight.shape))
        return own(gradient, weight, *geometry)

    monkeypatch.setattr(convolution, "_of_phases", phases)
    channels, size, kernel, step, padding = case
    x, weight = torch.rand(1, channels, size, size), torch.randn(2, channels, kernel, kernel)
    expected = _gradient(x.double(), weight.double(), None, step, padding)
    with FoldedConvolutions():
        found = _gradient(x, weight, None, step, padding)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert seen == [(2, channels, kernel, kernel)]


def _folds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each gradient of ours."""
    seen: list[int] = []
    own = _Folded.backward

    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen.append(1)
        return own(ctx, *gradients)

    monkeypatch.setattr(_Folded, "backward", staticmethod(backward))
    return seen


def test_taken_for_grey_images_patches_and_strides_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _folds(monkeypatch)
    with FoldedConvolutions():
        _gradient(torch.rand(2, 1, 8, 8), torch.rand(4, 1, 3, 3), torch.zeros(4), (1, 1), (1, 1))
        assert len(seen) == 1
        _gradient(torch.rand(2, 3, 8, 8), torch.rand(4, 3, 4, 4), None, (4, 4))
        assert len(seen) == 2
        _gradient(torch.rand(2, 3, 8, 8), torch.rand(4, 3, 5, 5), None, 2, 1)
        assert len(seen) == 3
        _gradient(torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3), None, 2, 1)
        _gradient(torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3))
        _gradient(torch.rand(2, 5, 8, 8), torch.rand(4, 5, 5, 5), None, 2, 1)
        _gradient(torch.rand(2, 2, 8, 8), torch.rand(4, 1, 3, 3), None, 1, 0, 1, 2)
        _gradient(torch.rand(2, 1, 8, 8).double(), torch.rand(4, 1, 3, 3).double())
        _gradient(torch.rand(2, 1, 8, 8), torch.rand(4, 1, 3, 3), None, 1, "same")
        assert len(seen) == 3


def test_weights_that_want_a_gradient_get_it() -> None:
    layer = nn.Conv2d(1, 4, 3)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    with FoldedConvolutions():
        layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_can_be_differentiated_again(stride: int) -> None:
    weight = torch.rand(4, 1, 4, 4)
    both = []
    for context in (FoldedConvolutions(), torch.enable_grad()):
        x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8).requires_grad_()
        with context:
            slope = torch.autograd.grad(F.conv2d(x, weight, None, stride).pow(3).sum(), x, create_graph=True)[0]
            both.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert torch.allclose(both[0], both[1], rtol=1e-4)
