"""resize-pad: how large, where, and that the picture is all there."""

from __future__ import annotations

import pytest
import torch

from robustbench_lite.defenses.resize_pad import ResizePad
from robustbench_lite.errors import UserError


def test_a_white_image_shows_its_side_and_place() -> None:
    torch.manual_seed(0)
    seen = ResizePad(share=0.6).transform(torch.ones(400, 1, 10, 10))[:, 0]
    inside = seen > 0.99
    rows, columns = inside.any(2), inside.any(1)
    assert torch.equal(inside, rows.unsqueeze(2) & columns.unsqueeze(1))
    assert torch.equal(rows.sum(1), columns.sum(1))
    assert set(rows.sum(1).tolist()) == {6, 7, 8, 9, 10}
    small = rows.sum(1) == 6
    assert set(rows[small].int().argmax(1).tolist()) == set(columns[small].int().argmax(1).tolist()) == {0, 1, 2, 3, 4}


def test_the_whole_side_is_the_image() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 2, 6, 9)
    assert torch.allclose(ResizePad(share=1.0).transform(x), x, atol=1e-6)


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^share must be in \(0, 1\], got 1\.5"):
        ResizePad(share=1.5)
