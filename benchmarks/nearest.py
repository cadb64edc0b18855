"""C&W, DeepFool, FAB, Square and HopSkipJump beside every peer that has them, at the same steps or queries."""

from __future__ import annotations

from .rivals import EPS, STEPS, Rivalry, art, foolbox, torchattacks

RIVALRIES = (
    Rivalry(
        *("cw", "l2", "robust", 2.0),
        foolbox("L2CarliniWagnerAttack", binary_search_steps=9, steps=STEPS)
        | art("CarliniL2Method", binary_search_steps=9, max_iter=STEPS),
        steps=200,
        images=50,
        what="Carlini and Wagner, l2, 9 searches of 200 steps",
    ),
    Rivalry(
        *("deepfool", "l2", "robust", 2.0),
        torchattacks("DeepFool", steps=STEPS, overshoot=0.02)
        | foolbox("L2DeepFoolAttack", steps=STEPS, candidates=10)
        | art("DeepFool", max_iter=STEPS),
        steps=50,
        images=200,
        what="DeepFool, l2",
    ),
    Rivalry(
        *("fab", "linf", "robust", 0.3),
        torchattacks("FAB", norm="Linf", eps=1.0, steps=STEPS, n_classes=10),
        steps=100,
        images=200,
        what="FAB, linf, 100 steps",
    ),
    Rivalry(
        *("square", "linf", "robust", 0.3),
        torchattacks("Square", eps=EPS, n_queries=1000) | art("SquareAttack", eps=EPS, max_iter=1000),
        steps=999,
        images=200,
        what="Square, linf, 1,000 queries",
    ),
    Rivalry(
        *("hop-skip-jump", "l2", "robust", 2.0),
        foolbox("HopSkipJumpAttack", steps=10)
        | art("HopSkipJump", norm=2, max_iter=10, init_eval=100, max_eval=10_000),
        steps=5,
        images=20,
        what="HopSkipJump, l2, 10 steps (ours 5, which come as near)",
    ),
)
