"""Random access, blocks, subsets and shards: what every data set owes the engine."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.data import (
    ArrayDataset,
    Dataset,
    StreamDataset,
    balanced_subset,
    from_arrays,
    load_dataset,
    shard_of,
)
from robustbench_lite.errors import UserError

# From Python 3.12 on a fork beside other threads warns; the loader's workers only decode.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

SUBSET = [76, 170, 229, 237, 292, 405, 410, 433, 501, 538, 641, 944]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def streamed(image_folder: Path) -> StreamDataset:
    dataset = load_dataset(f"folder:{image_folder}")
    assert isinstance(dataset, StreamDataset)
    return dataset


def assert_blocks_equal_images(dataset: Dataset, size: int) -> None:
    index = torch.tensor([7, 0, 3, 3, 8, 1, 5])
    x, y = dataset.images(index), dataset.labels[index]
    blocks = list(dataset.blocks(index, size))
    assert [len(i) for i, _, _ in blocks] == [min(size, 7 - start) for start in range(0, 7, size)]
    for k, expected in enumerate((index, x, y)):
        assert torch.equal(torch.cat([block[k] for block in blocks]), expected)
    assert x.dtype == torch.float32
    assert x.shape == (7, *dataset.shape)
    assert x.is_contiguous()
    assert 0 <= x.min() < x.max() <= 1
    assert torch.equal(torch.cat([dataset.images(index[k : k + 1]) for k in range(7)]), x)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_blocks_equal_random_access_in_memory(size: int) -> None:
    assert_blocks_equal_images(from_arrays(numbers(9, 3, 5, 4), np.arange(9) % 2), size)


@forks
@pytest.mark.parametrize(("size", "workers"), [(3, 0), (100, 0), (2, 2)])
def test_blocks_equal_random_access_streamed(streamed: StreamDataset, size: int, workers: int) -> None:
    assert_blocks_equal_images(dataclasses.replace(streamed, workers=workers), size)


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(streamed: StreamDataset, workers: int) -> None:
    load_dataset("digits")  # rich, which scikit-learn imports, draws from `random` on its first import
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(dataclasses.replace(streamed, workers=workers).blocks(torch.arange(9), 4))
    balanced_subset(streamed.labels, 4)
    load_dataset("digits")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_is_one_line_from_a_worker_too(image_folder: Path, workers: int) -> None:
    file = image_folder / "cat" / "3.png"
    file.write_bytes(file.read_bytes()[:150])
    dataset = load_dataset(f"folder:{image_folder}", workers=workers)
    with pytest.raises(UserError) as error:
        list(dataset.blocks(torch.arange(9), 2))
    assert "3.png cannot be decoded" in str(error.value)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []


@forks
def test_reading_can_stop_before_the_end(streamed: StreamDataset) -> None:
    blocks = dataclasses.replace(streamed, workers=1).blocks(torch.arange(9), 1)
    _, x, _ = next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
    assert torch.equal(x, streamed.images(torch.tensor([0])))


KILLED = """
import multiprocessing, os, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
from robustbench_lite.data import load_dataset

try:
    blocks = load_dataset("folder:" + sys.argv[1], workers=1).blocks(torch.arange(9).repeat(50), 1)
    next(blocks)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    list(blocks)
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_killed_worker_names_workers(image_folder: Path) -> None:
    """In a process of its own: torch tells of a dead worker by a signal, which would strike the test runner too."""
    ran = subprocess.run([sys.executable, "-c", KILLED, image_folder], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(
        r"UserError --workers: one that decodes images was killed \(.*\); ask for fewer", ran.stdout.strip()
    ), ran.stderr


def test_streamed_set_pickles_for_workers_that_are_spawned(streamed: StreamDataset) -> None:
    index = torch.tensor([8, 2])
    assert torch.equal(pickle.loads(pickle.dumps(streamed)).images(index), streamed.images(index))


@pytest.mark.parametrize("index", [torch.tensor([9]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([[0]])])
def test_index_outside_is_refused(streamed: StreamDataset, index: torch.Tensor) -> None:
    for dataset in (streamed, streamed.in_memory()):
        with pytest.raises(IndexError, match="index must be"):
            dataset.images(index)


def test_no_index_no_images(streamed: StreamDataset) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    for dataset in (streamed, streamed.in_memory()):
        assert dataset.images(nothing).shape == (0, *dataset.shape)
        assert list(dataset.blocks(nothing, 4)) == []
        with pytest.raises(UserError, match="block must be at least 1"):
            list(dataset.blocks(nothing, 0))


def test_bytes_are_divided_exactly_and_copied() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    dataset = from_arrays(images, [0, 1, 0, 1])
    x = dataset.images(torch.arange(4))
    assert np.array_equal(x.flatten().numpy(), np.arange(256, dtype=np.float32) / np.float32(255))
    floats = from_arrays(x, [0, 1, 0, 1])
    floats.images(torch.arange(4)).zero_()
    assert torch.equal(floats.images(torch.arange(4)), dataset.images(torch.arange(4)))


def test_layout_in_memory_is_kept_and_does_not_change_the_fingerprint() -> None:
    planes = numbers(9, 3, 5, 4)
    pixels = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    one, other = from_arrays(planes, np.arange(9)), from_arrays(pixels, np.arange(9))
    assert one.fingerprint == other.fingerprint
    assert other.array.data_ptr() == pixels.data_ptr()
    assert torch.equal(one.images(torch.arange(9)), other.images(torch.arange(9)))


def test_fingerprint_follows_content() -> None:
    x, y = numbers(9, 1, 4, 4), torch.arange(9) % 3
    changed, swapped = x.clone(), y.clone()
    changed[8, 0, 3, 3] ^= 1
    swapped[8] = 0
    prints = {from_arrays(*xy).fingerprint for xy in ((x, y), (changed, y), (x, swapped), (x.reshape(9, 1, 2, 8), y))}
    assert len(prints) == 4
    assert from_arrays(x.clone(), y.clone()).fingerprint in prints


def test_streamed_fingerprint_follows_the_listing(image_folder: Path) -> None:
    first = load_dataset(f"folder:{image_folder}").fingerprint
    assert load_dataset(f"folder:{image_folder}/.").fingerprint == first
    assert load_dataset(f"folder:{image_folder}", image_size=8).fingerprint != first
    moved = image_folder.rename(image_folder.with_name("elsewhere"))
    assert load_dataset(f"folder:{moved}").fingerprint == first
    (moved / "cat" / "0.png").rename(moved / "dog" / "0.png")
    assert load_dataset(f"folder:{moved}").fingerprint != first


def test_in_memory_equals_streamed(streamed: StreamDataset) -> None:
    dataset = streamed.in_memory()
    assert isinstance(dataset, ArrayDataset)
    assert torch.equal(dataset.images(torch.arange(9)), streamed.images(torch.arange(9)))


labelings = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(torch.tensor)


@given(labelings, st.data())
def test_subset_is_balanced_nested_and_fixed(labels: torch.Tensor, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(labels)))
    index = balanced_subset(labels, n)
    assert index.dtype == torch.int64
    assert len(index) == n
    assert (index.diff() > 0).all()
    assert torch.equal(balanced_subset(labels, n), index)
    taken, there = torch.bincount(labels[index], minlength=6), torch.bincount(labels, minlength=6)
    for k in range(6):
        # No class has two more than one that has some left.
        assert taken[k] == there[k] or taken.max() - taken[k] <= 1
    if n < len(labels):
        assert set(index.tolist()) < set(balanced_subset(labels, n + 1).tolist())


def test_subset_is_what_it_was_when_results_were_recorded() -> None:
    assert balanced_subset(torch.arange(1000) % 10, 12).tolist() == SUBSET
    assert len(balanced_subset(torch.arange(1000) % 10, 1000)) == 1000


def test_subset_is_not_the_first_of_each_class() -> None:
    index = balanced_subset(torch.arange(1000) % 10, 100)
    assert 300 < index.float().mean() < 700


@pytest.mark.parametrize("n", [0, -3, 11])
def test_subset_size_outside_is_refused(n: int) -> None:
    with pytest.raises(UserError, match=rf"^--samples must be in 1..10, .* got {n}$"):
        balanced_subset(torch.zeros(10, dtype=torch.int64), n)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_partition(n: int, parts: int) -> None:
    index = torch.arange(n) * 3
    shards = [shard_of(index, (i, parts)) for i in range(1, parts + 1)]
    assert sorted(torch.cat(shards).tolist()) == index.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (1, 0), (-1, 4)])
def test_shard_outside_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="--shard must be I/N"):
        shard_of(torch.arange(8), shard)
