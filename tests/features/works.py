"""What the tests of features share: images that a bright row tells, networks for them, a workshop, a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lite.data.checks import from_arrays
from robustbench_lite.data.dataset import ArrayDataset
from robustbench_lite.features.construction import Block, Construction, Made, Workshop
from robustbench_lite.given import given_model
from robustbench_lite.models import LoadedModel
from robustbench_lite.network import frozen
from robustbench_lite.streams import Stream

CLASSES = 3


def images(n: int = 60, *, split: str = "train", seed: int = 1) -> ArrayDataset:
    """Images (n, 1, 4, 4) of 8 bits, of which row y is brighter."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = 0.1 + 0.5 * torch.rand((n, 1, 4, 4), generator=generator)
    x[torch.arange(n), 0, y] += 0.3
    return from_arrays((x * 255).round().to(torch.uint8), y, name="rows", split=split, classes=CLASSES)


def network(seed: int = 5) -> nn.Sequential:
    """Knows the classes: its first layer holds the rows' brightness, and mixtures of all pixels beside."""
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(16, 12), nn.Linear(12, CLASSES)
    for parameter in (*first.parameters(), *last.parameters()):
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    for row in range(CLASSES):
        first.weight.data[row, 4 * row : 4 * row + 4] = 0.5
        last.weight.data[row, row] = 8.0
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), last).eval()


def loaded(module: nn.Module | None = None) -> LoadedModel:
    """A network as a build takes it."""
    return given_model(module or network(), "rows-net")


def workshop(data: ArrayDataset | None = None, module: nn.Module | None = None, *, seed: int = 0) -> Workshop:
    """A place to work at."""
    return Workshop(data or images(), module or network(), seed=seed)


def block_of(shop: Workshop, index: Tensor | None = None) -> Block:
    """Images of the workshop's data, with the streams that a build gives them."""
    index = torch.arange(len(shop.data)) if index is None else index
    stream = Stream(torch.zeros_like(index)).child(f"features {shop.seed}").child(index)
    return Block(index, shop.data.images(index), shop.data.labels[index], stream)


def made_by(construction: Construction, shop: Workshop | None = None, index: Tensor | None = None) -> Made:
    """What becomes of images, with the defaults filled in."""
    shop = shop or workshop()
    with frozen(shop.module):
        return construction.resolve(shop.data).make(shop, block_of(shop, index))


def same_in_parts(construction: Construction) -> None:
    """Assert that an image comes out alike alone, among a few and among all, and that inputs are left as they were."""
    shop = workshop()
    before = shop.data.images(torch.arange(len(shop.data))).clone()
    state, mode = torch.get_rng_state(), shop.module.training
    whole = made_by(construction, shop)
    for part in (torch.arange(1), torch.arange(7, 30), torch.tensor([40, 3, 59])):
        apart = made_by(construction, shop, part)
        assert torch.equal(apart.images, whole.images[part])
        assert torch.equal(apart.labels, whole.labels[part])
        for name, values in apart.notes.items():
            assert torch.equal(values, whole.notes[name][part]), name
    assert torch.equal(shop.data.images(torch.arange(len(shop.data))), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert shop.module.training == mode
