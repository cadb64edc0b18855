"""Patches and stickers: as large as they say, where they may be, learned or made for each; nothing else touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.patch import REGIONS, AdversarialPatch, Sticker, region
from robustbench_lite.errors import UserError
from robustbench_lite.filters import moved
from robustbench_lite.streams import Stream


def _x(count: int = 40, shape: tuple[int, ...] = (2, 16, 20), *, seed: int = 0) -> Tensor:
    return 0.2 + 0.2 * torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


class Brightest(nn.Module):
    """Class k where channel k has the brightest sum, in a window that a patch can light up anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2) * 20


def _label(x: Tensor) -> Tensor:
    labels: Tensor = Brightest()(x).argmax(1)
    return labels


def _where(count: int) -> Tensor:
    return Stream(torch.arange(count)).child("test").uniform((4,))


@pytest.mark.parametrize("shape", ["circle", "square"])
@pytest.mark.parametrize("size", [0.02, 0.1, 0.3])
def test_it_covers_its_share_wherever_it_is_put(shape: Any, size: float) -> None:
    x = torch.zeros((200, 1, 40, 60))
    attack = AdversarialPatch(size=size, shape=shape, scale_min=1, scale_max=1, rotation=180)
    shown = attack.put(torch.ones((1, 9, 9)), x, _where(200))
    assert ((shown == 0) | (shown == 1)).all()
    share = shown.flatten(1).mean(1)
    assert share.mean() == pytest.approx(size, rel=0.03)  # all of it is inside the image
    assert (share / size - 1).abs().max() < 0.3
    # It gets to every side, and no two lie alike.
    reach = shown.amax(0)[0]
    for side in (reach[:3], reach[-3:], reach[:, :3], reach[:, -3:], reach[18:22, 28:32]):
        assert side.max() == 1
    assert len({tuple(each.flatten().tolist()) for each in shown}) > 190


def test_scales_are_drawn_from_their_range() -> None:
    attack = AdversarialPatch(size=0.1, scale_min=0.5, scale_max=1.5, rotation=0)
    shown = attack.put(torch.ones((1, 9, 9)), torch.zeros((300, 1, 60, 60)), _where(300))
    scale = (shown.flatten(1).mean(1) / 0.1).sqrt()
    assert 0.47 < scale.min() < 0.55
    assert 1.4 < scale.max() < 1.53


def test_a_patch_that_lies_still_is_itself_and_a_turned_one_is_turned() -> None:
    patch = torch.rand((3, 6, 6), generator=torch.Generator().manual_seed(0))
    attack = AdversarialPatch(size=36 / 400, shape="square", scale_min=1, scale_max=1, rotation=90)
    x = torch.zeros((2, 3, 20, 20))
    where = torch.tensor([[0.0, 0.5, 0.5, 0.5], [0.0, 0.999999, 0.5, 0.5]])
    still, turned = attack.put(patch, x, where)
    assert torch.allclose(still[:, 7:13, 7:13], patch, atol=1e-5)
    assert still.abs().sum() == pytest.approx(float(patch.sum()), rel=1e-4)
    whole = moved(still.unsqueeze(0), torch.tensor([90.0]), torch.zeros(1), torch.zeros(1))[0]
    back = moved(still.unsqueeze(0), torch.tensor([-90.0]), torch.zeros(1), torch.zeros(1))[0]
    assert min(float((turned - other).abs().max()) for other in (whole, back)) < 1e-3


def test_one_that_fits_nowhere_lies_in_the_middle() -> None:
    attack = AdversarialPatch(size=1, shape="square", scale_min=1, scale_max=1, rotation=0)
    shown = attack.put(torch.ones((1, 4, 4)), torch.zeros((5, 1, 10, 10)), _where(5))
    assert shown.min() == 1


@pytest.mark.parametrize("target", [None, 1])
def test_the_learned_patch_is_the_best_colour(target: int | None) -> None:
    x, fit = _x(), _x(seed=1)
    keep = _label(x) == 0
    x, options = x[keep], {"steps": 60, "size": 0.1, "minibatch": 16}
    found = rbl.evaluate(
        Brightest().eval(), x, _label(x), attack="adversarial-patch", attack_options=options, target=target,
        fit_data=(fit[_label(fit) == 0], _label(fit)[_label(fit) == 0]), checks=False,
    )  # fmt: skip
    patch = found.learned["patch"]
    inside = patch[:, 3:-3, 3:-3]
    assert (inside[0] < 0.02).all()
    assert (inside[1] > 0.98).all()
    assert found.success.all()
    assert found.fit_forwards == found.fit_backwards == 60 * min(16, int((_label(fit) == 0).sum()))
    assert (found.column("forwards") == 2).all()
    assert found.backwards == 0
    assert found.adversarial is not None
    changed = (found.adversarial != x).any(1).flatten(1).double().mean(1)
    assert 0.1 * 0.8**2 * 0.9 < changed.min() < changed.max() < 0.1 * 1.2**2 * 1.1


def test_more_places_find_more() -> None:
    x = _x(60)
    rate = []
    for restarts in (1, 8):
        options = {"steps": 3, "size": 0.02, "restarts": restarts, "scale_min": 0.3, "scale_max": 2}
        found = rbl.evaluate(
            Brightest().eval(), x, _label(x), attack="adversarial-patch", attack_options=options, checks=False
        )
        rate.append(float(found.success.double().mean()))
    assert 0 <= rate[0] < rate[1]


def test_any_batch_size_learns_and_finds_the_same() -> None:
    x = _x(60)
    runs = [
        rbl.evaluate(
            Brightest().eval(), x, _label(x), attack="adversarial-patch", batch_size=size, checks=False,
            attack_options={"steps": 5, "size": 0.03},
        )
        for size in (1, 37, 256)
    ]  # fmt: skip
    for run in runs[1:]:
        assert torch.equal(run.learned["patch"], runs[0].learned["patch"])
        assert torch.equal(run.success, runs[0].success)
        assert run.adversarial is not None
        assert runs[0].adversarial is not None
        assert torch.equal(run.adversarial, runs[0].adversarial)


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_has_its_share_and_is_where_it_says(name: str) -> None:
    found = region(name, 0.1, 40, 50)
    assert float(found.double().mean()) == pytest.approx(0.1, rel=0.2)
    rows, columns = found.any(1).nonzero()[:, 0], found.any(0).nonzero()[:, 0]
    assert not found.all()
    if "top" in name:
        assert rows.max() < 20
    if "bottom" in name:
        assert rows.min() >= 20
    if "left" in name:
        assert columns.max() < 25
    if "right" in name:
        assert columns.min() >= 25
    assert bool(found[20, 25]) == (name == "centre")
    assert region(name, 1e-6, 40, 50).any()
    assert region(name, 1.0, 40, 50).all()


def _mask(folder: Path, kind: str) -> Path:
    array = np.zeros((16, 20), dtype=np.uint8)
    array[2:6, 3:9] = 255
    file = folder / f"mask.{kind}"
    if kind == "png":
        Image.fromarray(array).save(file)
    else:
        np.save(file, array / 255)
    return file


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_sticker_changes_what_its_mask_opens_and_nothing_else(kind: str, tmp_path: Path) -> None:
    x = _x()
    options = {"mask": str(_mask(tmp_path, kind)), "steps": 30}
    found = rbl.evaluate(Brightest().eval(), x, _label(x), attack="sticker", attack_options=options, checks=False)
    assert found.success.all()
    assert found.adversarial is not None
    changed = (found.adversarial != x).any(1)
    within = torch.zeros((16, 20), dtype=torch.bool)
    within[2:6, 3:9] = True
    assert not (changed & ~within).any()
    assert changed[:, within].double().mean() > 0.9
    recorded = found.run.specification.attack.resolved["mask_sha256"]
    assert len(recorded) == 64


def test_inside_its_mask_a_sticker_reaches_the_optimum() -> None:
    x = _x()
    y = _label(x)
    options = {"size": 0.1, "steps": 60, "mask": "top-left"}
    seen = rbl.perturb(Brightest().eval(), x, y, attack="sticker", norm="linf", eps=1, attack_options=options)
    best = x.clone()
    within = region("top-left", 0.1, 16, 20)
    for row in range(len(x)):
        best[row, int(y[row]), within] = 0.0
        best[row, 1 - int(y[row]), within] = 1.0
    assert torch.equal(seen, best)
    aimed = rbl.perturb(
        Brightest().eval(), x, y, attack="sticker", norm="linf", eps=1, attack_options=options, targets=y
    )
    assert (_label(aimed) == y).all()


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    file = _mask(tmp_path, "npy")
    made = Sticker(mask=str(file))
    assert Sticker(mask=str(file), mask_sha256=made.mask_sha256) == made
    np.save(file, np.ones((16, 20)))
    with pytest.raises(UserError, match=r"mask_sha256: .*mask\.npy is another file, expected"):
        Sticker(mask=str(file), mask_sha256=made.mask_sha256)
    with pytest.raises(UserError, match="mask_sha256: expected none for the region 'top'"):
        Sticker(mask="top", mask_sha256="00")


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mask: expected one of centre, .*, or a file .png or .npy, got 'middle'"):
        Sticker(mask="middle")
    with pytest.raises(UserError, match=r"mask: cannot read .*none\.png"):
        Sticker(mask=str(tmp_path / "none.png"))
    for name, content in (("a.png", b"nothing"), ("b.npy", b"nothing"), ("c.npy", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="mask: cannot read"):
            Sticker(mask=str(tmp_path / name))
    for array, message in (
        (np.zeros((4, 4)), "leaves no pixel open"),
        (np.ones((1, 4, 4)), r"expected numbers \(H, W\)"),
        (np.array([["a"]]), r"expected numbers \(H, W\)"),
    ):
        np.save(tmp_path / "d.npy", array)
        with pytest.raises(UserError, match=message):
            Sticker(mask=str(tmp_path / "d.npy"))
    x = _x(3, (2, 8, 8))
    with pytest.raises(UserError, match=r"mask: expected 8 x 8 pixels as the images have, got 16 x 20 in .*mask.png"):
        rbl.evaluate(
            Brightest().eval(), x, _label(x), attack="sticker", attack_options={"mask": str(_mask(tmp_path, "png"))}
        )


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (AdversarialPatch, {"size": 0.0}, r"size must be in \(0, 1\], a share of the image's area, got 0"),
        (AdversarialPatch, {"scale_min": 2.0}, "scale_min must be > 0 and at most scale_max, got 2 to 1.2"),
        (AdversarialPatch, {"scale_min": 0.0}, "scale_min must be > 0"),
        (AdversarialPatch, {"rotation": 181.0}, r"rotation must be in \[0, 180\] degrees, got 181"),
        (AdversarialPatch, {"shape": "star"}, "shape must be circle or square, got 'star'"),
        (AdversarialPatch, {"steps": 0}, "steps must be >= 1, got 0"),
        (AdversarialPatch, {"minibatch": 0}, "minibatch must be >= 1, got 0"),
        (AdversarialPatch, {"restarts": 0}, "restarts must be >= 1, got 0"),
        (AdversarialPatch, {"step_size": 0.0}, "step_size must be > 0, got 0"),
        (AdversarialPatch, {"clip": -1.0}, "clip must be > 0, got -1"),
        (AdversarialPatch, {"loss": "cw"}, "loss: unknown name 'cw'"),
        (Sticker, {"size": 1.5}, r"size must be in \(0, 1\], a share of the image's area, got 1.5"),
        (Sticker, {"steps": 0}, "steps must be >= 1, got 0"),
        (Sticker, {"step_size": float("nan")}, "step_size must be > 0, got nan"),
        (Sticker, {"restarts": 2, "random_start": False}, "restarts must be 1 without a random start"),
        (Sticker, {"loss": "cw"}, "loss: unknown name 'cw'"),
    ],
)
def test_options_are_refused(cls: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cls(**options)


@pytest.mark.parametrize("name", ["adversarial-patch", "sticker"])
def test_a_norm_is_not_their_limit(name: str) -> None:
    x = _x(4)
    with pytest.raises(UserError, match=f"attack {name} has limits of its own"):
        rbl.evaluate(Brightest().eval(), x, _label(x), attack=name, eps=0.1)
