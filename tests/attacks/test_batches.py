"""Every built-in attack finds the same at any batch size, to the last bit; one that is added is a case by itself."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite import registry
from robustbench_lite.attacks.apgd import APGDCE
from robustbench_lite.attacks.apgd_t import APGDT
from robustbench_lite.attacks.autoattack import AutoAttack
from robustbench_lite.attacks.fab import FABT
from robustbench_lite.attacks.square import Square

from ..core.nets import images, labels_of, mlp
from .few import EPS, OPTIONS

SHAPE, COUNT = (3, 8, 8), 40
# Norms beyond an attack's first in which it goes other ways.
MORE = {"a3": [], "auto": [], "autoattack": ["l1"], "corruptions": [], "fab": ["l2", "l1"]}
CASES = [
    (name, norm)
    for name in sorted(registry.builtins("attacks"))
    for norms in [registry.load("attacks", name).norms]
    for norm in (norms[0], *MORE.get(name, [n for n in norms[1:] if n != "l0" or name == "cw"]))
]
# What would take long in a pass an image is compared on the first few.
FEW = 4


def rows(name: str, norm: str, *, batch_size: int, count: int = COUNT) -> pd.DataFrame:
    """The whole table of the run file, hashes of the adversarial images among its columns."""
    model, x = mlp(shape=SHAPE), images(COUNT + 8, SHAPE)
    y = labels_of(model, x)
    y = torch.where(torch.arange(len(y)) % 7 == 3, (y + 1) % 4, y)  # some are wrong and not attacked
    attack = registry.load("attacks", name)
    return rbl.evaluate(
        model,
        x[:count],
        y[:count],
        attack=name,
        norm=norm,
        eps=1.0 if attack.own_limits else EPS[norm],
        attack_options=OPTIONS.get(name),
        batch_size=batch_size,
        deterministic=True,
        checks=False,
        fit_data=(x[COUNT:], y[COUNT:]) if attack.learns else None,
    ).samples


@pytest.mark.filterwarnings("ignore::UserWarning")  # of weak attacks and networks the run says so
@pytest.mark.parametrize(
    ("name", "norm"),
    CASES,
)
def test_batches_of_1_37_and_256_agree(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The reference portfolio has hyperparameters of its own, 5,000 queries among them.
    shorter = (APGDCE(steps=8), APGDT(steps=6, classes=2), FABT(steps=3, classes=2), Square(steps=15))
    monkeypatch.setattr(AutoAttack, "parts", lambda self, threat: shorter)
    whole = rows(name, norm, batch_size=256)
    assert whole.attacked.sum() > COUNT / 2 and whole.forwards.max() > 1
    # The last three of the forty come in where others have ended.
    pd.testing.assert_frame_equal(rows(name, norm, batch_size=37), whole, check_exact=True)
    pd.testing.assert_frame_equal(rows(name, norm, batch_size=1, count=FEW), whole[:FEW], check_exact=True)
