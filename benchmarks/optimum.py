"""How near each attack comes to the closed-form optimum of one linear layer: `python -m benchmarks.optimum`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite import registry
from robustbench_lite.attack import Attack
from robustbench_lite.options import configure

IMAGES, SIDE = 40, 6
SLACK = 1.25  # of the optimum: as far as a minimal attack may be, and as much as one of fixed eps is given
CONTROLS = ("noise",)  # not meant to find anything
FAMILIES = ("blur", "contrast")  # the least of one change, not the nearest image
# Of attacks whose defaults are made for large networks and large budgets: enough for a layer of 36 numbers.
OPTIONS: dict[str, dict[str, object]] = {
    "a3": {"rounds": 4, "least": 2},
    "auto": {"effort": "quick"},
    "boundary": {"steps": 1500, "proposals": 2},
    "cw": {"steps": 300},
    "ead": {"steps": 200, "beta": 0.05},
    "fab-t": {"classes": 1},
    "geoda": {"side": SIDE, "steps": 6},
    "gen-attack": {"steps": 300},
    "hop-skip-jump": {"steps": 12},
    "lbfgs": {"searches": 12, "steps": 30},
    "one-pixel": {"steps": 30, "population": 40},
    "pointwise": {"steps": 300},
    "sigma-zero": {"steps": 100},
    "sign-opt": {"steps": 15, "directions": 60, "starts": 20},
    "simba": {"steps": 800, "step_size": 0.01},
    "sparsefool": {"control": 1.0},
    "square": {"steps": 500},
    "zoo": {"steps": 150, "searches": 6, "c": 1.0, "coordinates": 36, "step_size": 0.02},
}
# Not held to the optimum, and why.
EXEMPT = {
    "di-fgsm": "follows the gradient at another, smaller image",
    "jitter": "scales two opposite logits to the same two numbers whatever the image",
    "jsma": "changes two numbers at a time, where one is enough",
    "r-fgsm": "spends half of eps on a random direction",
    "square": "squares of three pixels and more, for a layer that knows no neighbours (l2, l1)",
    "ti-fgsm": "blurs the gradient, as over shifted images",
    "tpgd": "goes away from what the network says of the image, to either side",
}


class Layer(nn.Module):
    """Two classes, one linear layer of 36 numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, generator=generator), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        z = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([z, -z], 1)

    def images(self) -> Tensor:
        """Images (40, 1, 6, 6) near enough to the plane that in linf, l2 and l1 the box does not bind."""
        generator = torch.Generator().manual_seed(1)
        x = 0.5 + 0.1 * torch.rand(IMAGES, SIDE * SIDE, generator=generator) - 0.05
        wanted = torch.linspace(0.15, 0.5, IMAGES) * torch.where(torch.arange(IMAGES) % 2 == 0, 1.0, -1.0)
        off = wanted - (x - 0.5) @ self.weight
        x = x + off[:, None] * self.weight / self.weight.square().sum()
        return x.reshape(-1, 1, SIDE, SIDE)

    def optimum(self, x: Tensor, norm: str) -> Tensor:
        """The distance of the plane, (N,) float64; in l0 the fewest numbers whose full change crosses it."""
        z, w = ((x.flatten(1) - 0.5) @ self.weight).double(), self.weight.double()
        if norm != "l0":
            dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
            distance: Tensor = z.abs() / dual
            return distance
        down = torch.where((w > 0) == (z > 0)[:, None], x.flatten(1).double(), 1 - x.flatten(1).double()) * w.abs()
        gained = down.sort(1, descending=True).values.cumsum(1)
        fewest: Tensor = (gained <= z.abs()[:, None]).sum(1) + 1
        return fewest.double()


@dataclass(frozen=True)
class Found:
    """One attack in one norm. ratio: the median and the largest distance over the optimum; of an attack of fixed eps,
    which is given 1.25 times the optimum, none. fooled: share of the images; forwards, backwards: passes an image."""

    name: str
    norm: str
    ratio: tuple[float, float] | None
    fooled: float
    forwards: float
    backwards: float


def suited() -> list[tuple[str, str]]:
    """Every built-in attack and norm of which an optimum can be said."""
    pairs = []
    for name in sorted(registry.builtins("attacks")):
        attack: type[Attack] = registry.load("attacks", name)
        if name in (*CONTROLS, *FAMILIES) or attack.own_limits or attack.persists or attack.fit is not Attack.fit:
            continue
        pairs += [(name, norm) for norm in attack.norms]
    return pairs


def measured(name: str, norm: str) -> Found:
    """One attack in one norm, on 40 images."""
    layer = Layer().eval()
    x = layer.images()
    y, optimum = layer(x).argmax(1), layer.optimum(x, norm)
    attack: Attack = configure(registry.load("attacks", name), OPTIONS.get(name), argument=name)
    eps = optimum * SLACK if norm != "l0" else (optimum * SLACK).floor()
    widest = {"linf": 1.0, "l2": float(SIDE), "l1": float(SIDE * SIDE), "l0": float(SIDE * SIDE)}[norm]
    given = widest if attack.minimal else eps.float()
    result = rbl.evaluate(layer, x, y, attack=attack, norm=norm, eps=given, checks=False)
    rows = result.samples
    ratio = None
    if attack.minimal:
        over = torch.tensor(rows[f"distance_{norm}"].to_numpy(dtype=float)) / optimum
        over = torch.where(result.success, over, torch.inf)
        ratio = (float(over.median()), float(over.max()))
    return Found(
        *(name, norm, ratio, float(result.success.double().mean())),
        *(float(rows.forwards.mean()), float(rows.backwards.mean())),
    )


def table() -> Iterator[str]:
    """Lines of a markdown table."""
    yield "| attack | norm | distance / optimum, median (largest) | fooled | forwards | backwards |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for name, norm in suited():
        f = measured(name, norm)
        ratio = "eps is 1.25 x optimum" if f.ratio is None else f"{f.ratio[0]:.3f} ({f.ratio[1]:.3f})"
        yield f"| `{name}` | {norm} | {ratio} | {f.fooled:.0%} | {f.forwards:.0f} | {f.backwards:.0f} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
