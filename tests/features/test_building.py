"""A build: read by the loader, the same after a stop and at any batch size, and careful with what lies in its way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from robustbench_lite.data import load_dataset
from robustbench_lite.errors import RecordError, UserError
from robustbench_lite.features import building as module
from robustbench_lite.features.building import build
from robustbench_lite.features.construction import Construction, make_construction
from robustbench_lite.features.constructions.errors import Errors
from robustbench_lite.features.constructions.nonrobust import NonRobust
from robustbench_lite.features.constructions.random import Random
from robustbench_lite.features.storage import TEST, TRAIN, provenance, read_rows
from robustbench_lite.registry import builtins
from robustbench_lite.running import Interrupted

from .works import CLASSES, images, loaded, made_by, network, workshop

CASES = [Random(eps=0.5, steps=4), NonRobust(steps=4), Errors()]


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images are five blocks."""
    monkeypatch.setattr(module, "ROWS", 13)


def poor() -> torch.nn.Sequential:
    """A network that gets a part of the images wrong."""
    found = network()
    with torch.no_grad():
        found[3].weight[0] *= 0.7  # type: ignore[index,operator]
    return found


@pytest.mark.parametrize("construction", CASES, ids=lambda one: one.name)
def test_what_was_built_is_what_was_made(construction: Construction, tmp_path: Path) -> None:
    """Read again by the loader that everybody uses, images and labels are those that the construction makes."""
    index = torch.arange(3, 50)
    test = images(20, split="test", seed=2)
    seen: list[int] = []
    made = build(
        construction, loaded(poor()), images(), out=tmp_path / "d", index=index, test=test, progress=seen.append
    )
    assert not made.known
    assert sum(seen) == len(index)
    expected = made_by(construction, workshop(module=poor()), index)
    kept = torch.ones(len(index), dtype=torch.bool) if expected.kept is None else expected.kept
    read = load_dataset(f"parquet:{tmp_path / 'd'}", split="train")
    assert len(read) == int(kept.sum())
    every = torch.arange(len(read))
    assert (read.images(every) - expected.images[kept]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(read.labels, expected.labels[kept])
    assert read.classes == images().classes
    rows = read_rows(tmp_path / "d", "source_index", "source_label", "distance", "forwards", "backwards")
    assert rows["source_index"].tolist() == index[kept].tolist()
    assert rows["source_label"].tolist() == images().labels[index[kept]].tolist()
    moved = (read.images(every) - images().images(index[kept])).double().flatten(1).norm(dim=1)
    np.testing.assert_allclose(rows["distance"], moved.numpy(), atol=1e-6)
    assert rows["forwards"].tolist() == expected.forwards[kept].tolist()
    real = load_dataset(f"parquet:{tmp_path / 'd'}", split="test")
    assert torch.equal(real.labels, test.labels)
    assert torch.equal(real.images(torch.arange(20)), test.images(torch.arange(20)))


def test_provenance_says_what_decided_it(tmp_path: Path) -> None:
    data = images()
    build(Random(eps=0.5, steps=4), loaded(), data, out=tmp_path / "d", seed=3)
    said = provenance(tmp_path / "d")
    assert said["construction"] == "random"
    assert said["options"]["eps"] == 0.5 and said["options"]["attack"] == "pgd"
    assert said["dataset"]["fingerprint"] == data.fingerprint
    assert said["model"]["sha256"] == loaded().sha256
    assert said["seed"] == 3
    assert set(said["source_sha256"]) == {
        "robustbench_lite.features.constructions.random.Random",
        "robustbench_lite.features.targeted.Targeted",
        "robustbench_lite.attacks.pgd.PGD",
    }
    assert said["device"] == "cpu" and said["torch"] == torch.__version__
    assert said["version"]


def test_an_attack_from_a_file_decides_by_what_is_in_it_and_weights_by_what_they_are(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    text = "from robustbench_lite.attacks.pgd import PGD\n\n\nclass Own(PGD):\n    name = 'own'\n"
    own.write_text(text)
    build(Random(eps=0.5, steps=2, attack=f"{own}:Own"), loaded(), images(), out=tmp_path / "d")
    moved = dataclasses.replace(loaded(), weights="elsewhere.safetensors")
    assert build(Random(eps=0.5, steps=2, attack=f"{own}:Own"), moved, images(), out=tmp_path / "d").known
    own.write_text(text + "    summary = 'another'\n")
    with pytest.raises(UserError, match=r"holds another data set \(source_sha256 differ\)"):
        build(Random(eps=0.5, steps=2, attack=f"{own}:Own"), loaded(), images(), out=tmp_path / "d")


@pytest.mark.parametrize("construction", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_stopped_build_goes_on_to_the_same_bytes(construction: Construction, after: int, tmp_path: Path) -> None:
    test = images(20, split="test", seed=2)
    build(construction, loaded(poor()), images(), out=tmp_path / "whole", test=test)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    with pytest.raises(Interrupted, match=r"the same command goes on with .*parts.building"):
        build(construction, loaded(poor()), images(), out=tmp_path / "parts", test=test, stop=stop)
    assert not (tmp_path / "parts").exists()
    assert len(list((tmp_path / "parts.building").glob("block-*.parquet"))) == after
    build(construction, loaded(poor()), images(), out=tmp_path / "parts", test=test)
    for name in (TRAIN, TEST):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "parts.building").exists()


@pytest.mark.parametrize("construction", CASES, ids=lambda one: one.name)
def test_neither_batches_nor_blocks_change_a_pixel(
    construction: Construction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(construction, loaded(poor()), images(), out=tmp_path / "a", batch_size=256)
    build(construction, loaded(poor()), images(), out=tmp_path / "b", batch_size=5)
    monkeypatch.setattr(module, "ROWS", 31)
    build(construction, loaded(poor()), images(), out=tmp_path / "c", batch_size=7)
    first = pq.read_table(tmp_path / "a" / TRAIN)
    for other in ("b", "c"):
        assert pq.read_table(tmp_path / other / TRAIN).equals(first)


def test_a_build_that_is_there_is_known_and_another_is_not_overwritten(tmp_path: Path) -> None:
    build(Random(eps=0.5, steps=2), loaded(), images(), out=tmp_path / "d")
    bytes_ = (tmp_path / "d" / TRAIN).read_bytes()
    assert build(Random(eps=0.5, steps=2), loaded(), images(), out=tmp_path / "d").known
    for other in (
        lambda: build(Random(eps=0.5, steps=3), loaded(), images(), out=tmp_path / "d"),
        lambda: build(Random(eps=0.5, steps=2), loaded(network(6)), images(), out=tmp_path / "d"),
        lambda: build(Random(eps=0.5, steps=2), loaded(), images(seed=9), out=tmp_path / "d"),
        lambda: build(Random(eps=0.5, steps=2), loaded(), images(), out=tmp_path / "d", seed=1),
        lambda: build(Random(eps=0.5, steps=2), loaded(), images(), out=tmp_path / "d", index=torch.arange(9)),
    ):
        with pytest.raises(UserError, match=r"--out: .* holds another data set \(.+ differ\)"):
            other()  # type: ignore[no-untyped-call]
    assert (tmp_path / "d" / TRAIN).read_bytes() == bytes_


def test_a_foreign_or_corrupt_block_is_named_and_left_alone(tmp_path: Path) -> None:
    def half(seed: int, out: str) -> None:
        with pytest.raises(Interrupted):
            build(Errors(), loaded(poor()), images(), out=tmp_path / out, seed=seed, stop=lambda: bool(list(blocks())))

    def blocks() -> list[Path]:
        return sorted((tmp_path / "d.building").glob("block-*.parquet"))

    half(0, "d")
    (first,) = blocks()
    kept = first.read_bytes()
    with pytest.raises(UserError, match=r"block-00000.parquet is of another build; it is left alone"):
        build(Errors(), loaded(poor()), images(), out=tmp_path / "d", seed=1)
    assert first.read_bytes() == kept
    first.write_bytes(kept[:-20])
    with pytest.raises(RecordError, match=r"block-00000.parquet is not a readable Parquet file"):
        build(Errors(), loaded(poor()), images(), out=tmp_path / "d")
    assert first.read_bytes() == kept[:-20]


def test_what_lies_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else; give the name of a new folder"):
        build(Errors(), loaded(poor()), images(), out=tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else"):
        build(Errors(), loaded(poor()), images(), out=tmp_path / "file")
    with pytest.raises(UserError, match=r"no such folder .*; make it first"):
        build(Errors(), loaded(poor()), images(), out=tmp_path / "no" / "where")
    (tmp_path / "theirs").mkdir()
    pq.write_table(pq.read_table(_tiny(tmp_path)), tmp_path / "theirs" / TRAIN)
    with pytest.raises(RecordError, match=r"is no data set that rbl features build wrote; it is left alone"):
        build(Errors(), loaded(poor()), images(), out=tmp_path / "theirs")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def _tiny(folder: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), folder / "tiny.parquet")
    return folder / "tiny.parquet"


def test_nothing_left_and_no_features_are_told_before_or_at_once(tmp_path: Path) -> None:
    right = (network()(images().images(torch.arange(60))).argmax(1) == images().labels).nonzero()[:, 0]
    with pytest.raises(UserError, match=rf"--kind: errors kept none of {len(right)} images; .*train it less"):
        build(Errors(), loaded(network()), images(), out=tmp_path / "none", index=right)
    assert list(tmp_path.iterdir()) == []  # another network may be tried in the same place
    pooled = torch.nn.Sequential(torch.nn.Conv2d(1, CLASSES, 4), torch.nn.Flatten())
    with pytest.raises(UserError, match=r"--model: the network has no linear layer"):
        build(NonRobust(), loaded(pooled), images(), out=tmp_path / "conv")


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    model = poor().train()
    state = torch.get_rng_state()
    build(Random(eps=0.5, steps=2), loaded(model), images(), out=tmp_path / "d")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


MINE = """
from dataclasses import dataclass
from robustbench_lite.features import Construction, Made

@dataclass(frozen=True)
class Darker(Construction):
    name, summary, source, symbol = "darker", "half as bright", "mine", "D_dark"
    share: float = 0.5

    def make(self, workshop, block):
        none = block.y * 0
        return Made(block.x * self.share, block.y, none, none)
"""


def test_a_construction_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, "utf-8")
    mine = make_construction(f"{tmp_path / 'mine.py'}:Darker", {"share": "0.25"})
    build(mine, loaded(), images(), out=tmp_path / "d")
    found = load_dataset(f"parquet:{tmp_path / 'd'}", split="train").images(torch.arange(60))
    assert (found - images().images(torch.arange(60)) / 4).abs().max() <= 0.5 / 255 + 1e-6


def test_every_construction_has_a_test_of_its_own() -> None:
    here = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    for name in builtins("constructions"):
        assert f"test_{name}" in here
        assert make_construction(name).symbol


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("randm", {}, r"--kind: unknown name 'randm'; did you mean random"),
        ("random", {"stepz": "3"}, r"--option: random has no option 'stepz'; did you mean steps"),
        ("robust", {"eps": "1"}, r"--option: robust has no option 'eps'"),
        ("json:loads", {}, r"is no subclass of robustbench_lite.features.Construction"),
    ],
)
def test_names_and_options_that_are_not_there(spec: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_construction(spec, options)


def test_the_metadata_is_plain_json(tmp_path: Path) -> None:
    """Anybody reads it without us."""
    build(Errors(), loaded(poor()), images(), out=tmp_path / "d")
    metadata = pq.read_schema(tmp_path / "d" / TRAIN).metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"] == ["0", "1", "2"]
    assert json.loads(metadata[b"robustbench_lite"])["construction"] == "errors"
