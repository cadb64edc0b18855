from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.data import from_arrays, load_dataset
from robustbench_lite.errors import RecordError, UserError
from robustbench_lite.examples import check_examples_path, load_examples, save_examples
from robustbench_lite.figure import figure_of
from robustbench_lite.files import sha256_file
from robustbench_lite.models import LoadedModel
from robustbench_lite.plan import Plan
from robustbench_lite.plan_run import run_plan
from robustbench_lite.result import Result
from robustbench_lite.threat import Threat

NOBODY = 65534
KEYS = {
    "images",
    "adversarial",
    "labels",
    "prediction",
    "adversarial_prediction",
    "success",
    "index",
    "run_id",
}


@pytest.fixture(scope="module")
def evaluated() -> tuple[Result, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.rand(50, 2, 6, 6, generator=generator)
    y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return rbl.evaluate(net.eval(), x, y, attack="pgd", eps=0.1, attack_options={"steps": 5}), x, y


@pytest.fixture
def file(evaluated: tuple[Result, torch.Tensor, torch.Tensor], tmp_path: Path) -> Path:
    save_examples(tmp_path / "e.npz", evaluated[0], evaluated[1])
    return tmp_path / "e.npz"


def test_what_is_saved_is_read_by_plain_numpy_with_the_promised_types(
    evaluated: tuple[Result, torch.Tensor, torch.Tensor], file: Path
) -> None:
    result, x, y = evaluated
    with np.load(file, allow_pickle=False) as saved:
        assert set(saved.files) == KEYS
        assert {n: str(saved[n].dtype) for n in ("images", "adversarial")} == dict.fromkeys(
            ("images", "adversarial"), "float32"
        )
        assert {str(saved[n].dtype) for n in ("labels", "prediction", "adversarial_prediction", "index")} == {"int64"}
        assert saved["success"].dtype == bool
        assert str(saved["run_id"]) == result.run.specification.run_id()
        assert np.array_equal(saved["images"], x.numpy())
        assert np.array_equal(saved["labels"], y.numpy())
        assert result.adversarial is not None
        assert np.array_equal(saved["adversarial"], result.adversarial.numpy())
        assert saved["success"].sum() == result.success.sum() > 0
        moved = np.abs(saved["adversarial"] - saved["images"]).max((1, 2, 3))
        assert moved.max() <= 0.1 + 1e-6
        assert (moved[saved["success"]] > 0).all()
        assert saved["adversarial"].min() >= 0
        assert saved["adversarial"].max() <= 1


def test_it_loads_back_the_same(evaluated: tuple[Result, torch.Tensor, torch.Tensor], file: Path) -> None:
    result, x, _ = evaluated
    examples = load_examples(file)
    assert np.array_equal(examples.images, x.numpy())
    assert examples.success.tolist() == result.success.tolist()
    assert examples.index.tolist() == list(range(50))
    assert examples.run_id == result.run.specification.run_id()


def test_the_saved_file_is_a_data_set(file: Path, evaluated: tuple[Result, torch.Tensor, torch.Tensor]) -> None:
    data = load_dataset(f"npz:{file}")
    assert torch.equal(data.images(torch.arange(50)), evaluated[1])


def test_paths_may_be_texts(evaluated: tuple[Result, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    result, x, y = evaluated
    save_examples(f"{tmp_path}/e.npz", result, x)
    assert load_examples(f"{tmp_path}/e.npz").index.tolist() == list(range(50))
    data = from_arrays(x, y, classes=4)
    model = LoadedModel(nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).eval(), "net", "", 0, {}, "given", None)
    plan = Plan(model, data, torch.arange(5), FGSM(), Threat("linf", 0.1), keep_images=True, checks=False)
    run = run_plan(plan, leaderboard=f"{tmp_path}/lb")
    figure_of(run, plan, f"{tmp_path}/f.png")
    assert run.file is not None and run.file.parent == tmp_path / "lb" / "runs" and (tmp_path / "f.png").is_file()


def test_two_equal_runs_give_equal_bytes_at_any_time(
    evaluated: tuple[Result, torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, x, _ = evaluated
    first = save_examples(tmp_path / "a.npz", result, x)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000))
    second = save_examples(tmp_path / "b.npz", result, x)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert first.sha256 == second.sha256 == sha256_file(tmp_path / "a.npz")
    assert (first.file, second.file) == ("a.npz", "b.npz")


def test_a_name_without_the_ending_is_refused_before_the_run_and_after(
    evaluated: tuple[Result, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    for bad in ("out", "out.npy", "out.npz.txt"):
        with pytest.raises(UserError, match=r"--save-examples must be a path that ends in \.npz, got"):
            check_examples_path(tmp_path / bad)
        with pytest.raises(UserError, match="--save-examples"):
            save_examples(tmp_path / bad, evaluated[0], evaluated[1])
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file")
    (tmp_path / "dir.npz").mkdir()
    for bad, word in ((tmp_path / "plain" / "out.npz", "cannot write"), (tmp_path / "dir.npz", "the folder")):
        with pytest.raises(UserError, match="--save-examples") as caught:
            check_examples_path(bad)
        assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "plain").read_text() == "a file"


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder in which nothing may be written; root, who may write everywhere, is somebody else meanwhile."""
    if not hasattr(os, "geteuid"):
        pytest.skip("folders have no permissions here")
    user = os.geteuid()
    # Not tmp_path, whose parents are closed to others.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    try:
        if user == 0:
            try:
                os.seteuid(NOBODY)
            except OSError as error:
                pytest.skip(f"root cannot be another user here ({error.strerror})")
        yield folder
    finally:
        os.seteuid(user)
        folder.rmdir()


def test_a_folder_without_permission_is_told(closed: Path) -> None:
    with pytest.raises(UserError, match=r"--save-examples: cannot write .*Permission denied"):
        check_examples_path(closed / "out.npz")
    assert list(closed.iterdir()) == []


def test_checking_makes_no_folder_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        check_examples_path(tmp_path / "new" / "out.npz")
    check_examples_path(tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_old_file_as_it_was(
    evaluated: tuple[Result, torch.Tensor, torch.Tensor], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(UserError, match=r"--save-examples: .*No space left"):
        save_examples(file, evaluated[0], evaluated[1])
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_images_of_another_order_are_refused(
    evaluated: tuple[Result, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    result, x, _ = evaluated
    for wrong in (x.flip(0), x[:-1], x * 0.5):
        with pytest.raises(UserError, match="in their order"):
            save_examples(tmp_path / "e.npz", result, wrong)
    with pytest.raises(UserError, match="kept no images"):
        save_examples(tmp_path / "e.npz", replace(result, adversarial=None), x)
    assert list(tmp_path.iterdir()) == []


def change(file: Path, **changes: Any) -> None:
    with np.load(file) as saved:
        arrays = {name: saved[name] for name in saved.files}
    arrays |= changes
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"success": None}, "lacks success"),
        ({"images": np.zeros((50, 2, 6, 6))}, "images must be float32"),
        ({"images": np.zeros((50, 72), np.float32)}, "images must be float32 with 4 axes"),
        ({"labels": np.zeros(49, np.int64)}, "labels has 49 rows"),
        ({"labels": np.zeros(50, np.int32)}, "labels must be int64"),
        ({"adversarial": np.zeros((50, 2, 6, 7), np.float32)}, "adversarial is"),
        ({"success": np.zeros(50, np.int64)}, "success must be bool"),
        ({"run_id": np.array([1, 2])}, "run_id must be one text"),
        ({"run_id": np.array([{}], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_foreign_archive_is_told_in_one_line(file: Path, changes: dict[str, Any], word: str) -> None:
    change(file, **changes)
    with pytest.raises(RecordError, match=word) as caught:
        load_examples(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_corrupt_file_is_told_in_one_line_and_left_alone(file: Path) -> None:
    whole = file.read_bytes()
    position = whole.index(b"adversarial.npy") + 500
    flipped = bytearray(whole)
    flipped[position] ^= 255
    header = whole.replace(b"(50, 2, 6, 6)", b"(5000000000,)", 1)
    for damaged in (b"", b"no archive at all", whole[:100], whole[: len(whole) // 2], bytes(flipped), header):
        file.write_bytes(damaged)
        with pytest.raises(RecordError) as caught:
            load_examples(file)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == damaged


def test_what_is_not_there_or_a_folder_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(RecordError, match=str(path)):
            load_examples(path)


def test_an_archive_of_something_else_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(RecordError, match="no saved examples"):
        load_examples(tmp_path / "e.npz")
    shutil.copy(__file__, tmp_path / "e.npz")
    with pytest.raises(RecordError, match=r"no \.npz file"):
        load_examples(tmp_path / "e.npz")
