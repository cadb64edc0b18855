"""Every attack of ours that a peer has too: one declaration for each norm and network, run by `--part peers`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .rivals import EPS, NORM, STEP_SIZE, STEPS, Build, Rivalry, art, art_of_probabilities, foolbox, torchattacks

ROBUST, STANDARD, RESNET = "robust", "cifar10-standard", "standard"
# As far as says most: neither all images stand nor none.
FAR = {
    ROBUST: {"linf": 0.3, "l2": 2.0, "l1": 12.0, "l0": 20.0},
    STANDARD: {"linf": 3 / 255, "l2": 0.4, "l1": 8.0, "l0": 9.0},
    RESNET: {"linf": 1 / 255, "l2": 0.15, "l1": 4.0, "l0": 9.0},
}
# What each library calls eps, the step size and the number of steps.
T = {"eps": EPS, "alpha": STEP_SIZE, "steps": STEPS}
F = {"abs_stepsize": STEP_SIZE, "steps": STEPS}
A = {"eps": EPS, "eps_step": STEP_SIZE, "max_iter": STEPS}
AUTO = {"eps": EPS, "eps_step": EPS, "max_iter": STEPS, "nb_random_init": 1}
TEN, QUARTERS, FORTY = ({"steps": n, "step_size": size} for n, size in ((10, 0.1), (10, 0.25), (40, 1 / 16)))
QUIET = {"max_iter": 10, "verbose": False}
WIDE = 1e4  # where a peer asks how far the nearest image may be
CHANCE = "by chance: over four seeds ours leaves 55 to 61 %, the peer's 57 to 58 %"
STARTS = "by chance: over five random starts ours leaves 88.6 %, the peer's 88.0 %"
SOONER = "ours ends a search whose objective no longer falls, for less than half of the calls"
SQUARES = "by chance: over four seeds ours leaves 51.8 %, the peer's 52.8 %"
LINF, L2, L1, L0 = "linf", "l2", "l1", "l0"


def pair(attack: str, norm: str, *peers: dict[str, Build], on: str = ROBUST, **given: Any) -> Rivalry:
    """On one network."""
    eps = given.pop("eps", None) or FAR[on][norm]
    return Rivalry(attack, norm, on, eps, {name: build for peer in peers for name, build in peer.items()}, **given)


def both(attack: str, norm: str, *peers: dict[str, Build], **given: Any) -> Iterator[Rivalry]:
    """On a robust network and on a standard one."""
    for on in (ROBUST, STANDARD):
        yield pair(attack, norm, *peers, on=on, **given)


def _one_step() -> Iterator[Rivalry]:
    yield from both("fgsm", LINF, torchattacks("FGSM", eps=EPS), foolbox("FGSM"), art("FastGradientMethod", eps=EPS))
    yield from both("fgsm", L2, foolbox("L2FastGradientAttack"), art("FastGradientMethod", eps=EPS, norm=2))
    in_l1 = foolbox("L1FastGradientAttack"), art("FastGradientMethod", eps=EPS, norm=1)
    yield from both("fgsm", L1, *in_l1)
    yield pair("fgsm", L1, *in_l1, on=RESNET)
    yield from both("r-fgsm", LINF, torchattacks("RFGSM", **T), steps=1, step_size=0.5)
    yield from both("pgd", LINF, torchattacks("FFGSM", eps=EPS, alpha=STEP_SIZE), steps=1, step_size=1.25)
    yield from both("noise", LINF, foolbox("LinfRepeatedAdditiveUniformNoiseAttack"), options={"restarts": 100})
    gaussian = foolbox("L2RepeatedAdditiveGaussianNoiseAttack")
    drawn = {"distribution": "gaussian", "restarts": 100}
    yield pair("noise", L2, gaussian, options=drawn, eps=8.0, reasons=dict.fromkeys(gaussian, CHANCE))


def _equal_steps() -> Iterator[Rivalry]:
    basic = torchattacks("BIM", **T), foolbox("LinfBasicIterativeAttack", **F), art("BasicIterativeMethod", **A)
    yield from both("bim", LINF, *basic, **TEN)
    yield from both("bim", L2, foolbox("L2BasicIterativeAttack", **F), **TEN)
    yield from both("bim", L1, foolbox("L1BasicIterativeAttack", **F), steps=10, step_size=0.5)
    start = {"num_random_init": 1, **A}
    projected = "ProjectedGradientDescentPyTorch"
    yield from both("pgd", LINF, torchattacks("PGD", **T), foolbox("LinfPGD", **F), art(projected, **start), **FORTY)
    projections = torchattacks("PGDL2", **T), foolbox("L2PGD", **F), art(projected, norm=2, **start)
    starts: dict[str, Any] = {**FORTY, "reasons": {f"ART {projected}": STARTS}}
    yield pair("pgd", L2, *projections, **starts)
    yield pair("pgd", L2, *projections, on=STANDARD, **starts)
    in_l1 = foolbox("L1PGD", **F), foolbox("SparseL1DescentAttack", **F), art(projected, norm=1, **start)
    yield from both("pgd", L1, *in_l1, steps=40, step_size=0.5)
    yield from both("r-fgsm", LINF, torchattacks("RFGSM", **T), **QUARTERS)
    momentum = "LinfMomentumIterativeFastGradientMethod", "MomentumIterativeMethod"
    in_linf = torchattacks("MIFGSM", **T), foolbox(momentum[0], **F), art(momentum[1], **A)
    yield from both("mi-fgsm", LINF, *in_linf, **TEN)
    in_l2 = foolbox("L2MomentumIterativeFastGradientMethod", **F), art(momentum[1], norm=2, **A)
    yield from both("mi-fgsm", L2, *in_l2, **TEN)
    for name in ("ni-fgsm", "di-fgsm", "si-ni-fgsm"):
        yield from both(name, LINF, torchattacks(name.upper().replace("-", ""), **T), **TEN)
    for name in ("vmi-fgsm", "vni-fgsm"):
        yield from both(name, LINF, torchattacks(name.upper().replace("-", ""), **T), options={"neighbours": 5}, **TEN)
    # These two of the peer are for three channels alone.
    yield pair("ti-fgsm", LINF, torchattacks("TIFGSM", diversity_prob=0.0, **T), on=STANDARD, **TEN)
    yield pair("pi-fgsm", LINF, torchattacks("PIFGSM", max_epsilon=EPS, num_iter_set=STEPS), on=STANDARD, **TEN)
    yield from both("tpgd", LINF, torchattacks("TPGD", **T), **QUARTERS)
    yield from both("jitter", LINF, torchattacks("Jitter", **T), **QUARTERS)


def _auto_steps() -> Iterator[Rivalry]:
    for attack, loss, name in (
        ("apgd-ce", "ce", "cross_entropy"),
        ("apgd-dlr", "dlr", "difference_logits_ratio"),
    ):
        for norm, order in ((LINF, "inf"), (L2, 2)):
            ours = torchattacks("APGD", norm=norm.capitalize(), eps=EPS, steps=STEPS, loss=loss)
            automatic = art("AutoProjectedGradientDescent", norm=order, loss_type=name, **AUTO)
            yield from both(attack, norm, ours, automatic, steps=40)
    automatic = art("AutoProjectedGradientDescent", norm=1, loss_type="cross_entropy", **AUTO)
    yield from both("apgd-ce", L1, automatic, steps=40)
    for norm in (LINF, L2):
        in_turn = torchattacks("APGDT", norm=norm.capitalize(), eps=EPS, steps=STEPS)
        yield from both("apgd-t", norm, in_turn, steps=20, images=50)


def _nearest() -> Iterator[Rivalry]:
    deepfool = foolbox("L2DeepFoolAttack", steps=STEPS), art("DeepFool", max_iter=STEPS)
    yield from both("deepfool", L2, torchattacks("DeepFool", steps=STEPS), *deepfool, steps=50, images=50)
    yield from both("deepfool", LINF, foolbox("LinfDeepFoolAttack", steps=STEPS), steps=50)
    searched = foolbox("L2CarliniWagnerAttack", binary_search_steps=9, steps=STEPS)
    fixed = torchattacks("CW", c=1, steps=STEPS)
    yield from both("cw", L2, fixed, searched, art("CarliniL2Method", max_iter=10), steps=100, images=50)
    yield pair("cw", LINF, art("CarliniLInfMethod", max_iter=10), steps=100, images=10)
    yield pair("cw", L0, art("CarliniL0Method", binary_search_steps=2, max_iter=10), steps=50, images=4)
    in_l1 = (
        torchattacks("EADL1", max_iterations=STEPS),
        torchattacks("EADEN", max_iterations=STEPS),
        foolbox("EADAttack", steps=STEPS, decision_rule="L1"),
        art("ElasticNet", max_iter=10, decision_rule="L1"),
    )
    yield pair("ead", L1, *in_l1, steps=50, images=50, options={"rule": "L1"}, reasons={"foolbox EADAttack": SOONER})
    yield pair("ead", L1, *in_l1, steps=50, images=50, options={"rule": "L1"}, on=STANDARD)
    yield from both("ddn", L2, foolbox("DDNAttack", steps=STEPS), steps=100)
    for norm in (LINF, L2, L1, L0):
        name = f"{'LInf' if norm == LINF else norm.upper()}FMNAttack"
        yield from both("fmn", norm, foolbox(name, steps=STEPS), steps=100)
    for norm in (LINF, L2, L1):
        fab = {"norm": norm.capitalize(), "eps": WIDE, "steps": STEPS}
        yield from both("fab", norm, torchattacks("FAB", **fab), steps=50)
        yield pair("fab-t", norm, torchattacks("FAB", multi_targeted=True, **fab), steps=20, images=50)
    saliency = torchattacks("JSMA", gamma=0.145), art("SaliencyMapMethod", theta=1.0, gamma=0.145)
    yield pair("jsma", L0, *saliency, images=50)
    for norm in (L1, L0):
        yield from both("sparsefool", norm, torchattacks("SparseFool", steps=STEPS), steps=20, images=10)


def _scores() -> Iterator[Rivalry]:
    for norm, order in ((LINF, "inf"), (L2, 2)):
        squares = torchattacks("Square", norm=norm.capitalize(), eps=EPS, n_queries=1000)
        peers = squares, art("SquareAttack", norm=order, eps=EPS, max_iter=1000)
        yield pair("square", norm, *peers, steps=999)
        chance = dict.fromkeys(squares, SQUARES) if norm == L2 else {}
        yield pair("square", norm, *peers, steps=999, on=STANDARD, reasons=chance)
    spsa = torchattacks("SPSA", eps=EPS, nb_iter=STEPS, nb_sample=64, max_batch_size=64)
    yield from both("spsa", LINF, spsa, steps=10, images=50, options={"samples": 128})
    for basis, name in (("pixel", "px"), ("dct", "dct")):
        simba = art_of_probabilities("SimBA", attack=name, max_iter=STEPS, epsilon=0.2, batch_size=1)
        yield from both("simba", L2, simba, steps=500, images=20, options={"basis": basis})
    few = torchattacks("OnePixel", pixels=3, steps=STEPS, popsize=100, inf_batch=256), art("PixelAttack", th=3)
    yield pair("one-pixel", L0, *few, on=STANDARD, steps=10, images=10, options={"population": 100})
    zoo = art_of_probabilities("ZooAttack", max_iter=STEPS, use_resize=False, use_importance=False, batch_size=1)
    yield pair("zoo", L2, zoo, steps=100, images=10, options={"searches": 1})


def _labels() -> Iterator[Rivalry]:
    walks = foolbox("BoundaryAttack", steps=2000), art("BoundaryAttack", targeted=False, max_iter=100)
    yield from both("boundary", L2, *walks, steps=500, images=20)
    for norm, order in ((L2, 2), (LINF, "inf")):
        hops = (
            foolbox("HopSkipJumpAttack", steps=STEPS, constraint=norm),
            art("HopSkipJump", norm=order, max_iter=STEPS),
        )
        yield from both("hop-skip-jump", norm, *hops, steps=10, images=20)
    yield pair("sign-opt", L2, art("SignOPTAttack", targeted=False, max_iter=STEPS), steps=20, images=5)
    yield from both("geoda", L2, art("GeoDA", norm=2, max_iter=2000, sub_dim=28), steps=10, images=20)
    # Four restarts ask no more queries than the peer's one.
    yield pair("pointwise", L0, foolbox("PointwiseAttack", l2_binary_search=False), images=50, options={"restarts": 4})


def _others() -> Iterator[Rivalry]:
    yield from both("contrast", L2, foolbox("BinarySearchContrastReductionAttack", distance=NORM), eps=4.0)
    yield from both("blur", L2, foolbox("GaussianBlurAttack", distance=NORM, steps=STEPS), steps=100, eps=4.0)
    turned = {"max_rotation": 30.0, "num_rotations": 31}
    moved = foolbox("SpatialAttack", max_translation=3, **turned)
    everyone = art("SpatialTransformation", max_translation=10.72, num_translations=5, **turned)
    yield pair("spatial", LINF, moved, everyone, eps=1.0)
    universal = art("UniversalPerturbation", attacker="deepfool", eps=EPS, max_iter=5, attacker_params=QUIET)
    yield pair("uap", LINF, universal, images=20, options={"method": "deepfool", "epochs": 5})


PAIRS = (*_one_step(), *_equal_steps(), *_auto_steps(), *_nearest(), *_scores(), *_labels(), *_others())
