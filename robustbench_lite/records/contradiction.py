"""Certificates held against runs, image by image: where one was fooled, one of the two is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordError
from .certificate import Certificate, sound_certificates
from .run import Run
from .specification import DefenseRecord, ModelRecord, eps_text
from .summary import wilson

# Chance that the votes of a verdict come out so although the certificate holds; below it they refute it.
_CHANCE = 1e-6


def network_key(model: ModelRecord, defenses: Iterable[DefenseRecord]) -> tuple[Any, ...]:
    """What two records have in common that are of the same function of images.

    Defenses while training are in the weights; those in front of the network count with their options.
    """
    standing = [(d.name, sorted(d.resolved.items()), d.source_sha256) for d in defenses if d.kind == "inference"]
    return (model.sha256, model.layout_sha256, model.source_sha256, repr(standing))


def same_network(certificate: Certificate, run: Run) -> bool:
    """Whether both are of the same network behind the same defenses, with the same classes."""
    one, other = certificate.specification, run.specification
    same = network_key(one.model, one.defenses) == network_key(other.model, other.defenses)
    return same and one.dataset.classes == other.dataset.classes


def contradiction(certificate: Certificate, run: Run) -> str | None:
    """The first image that is certified and was nevertheless fooled, in one line; None where there is none.

    An image is refuted where the same image (by its content, with the same label) was brought to another class by an
    adversarial image no farther than its radius, in the certificate's norm, whatever the run's own norm is. Where
    verdicts are votes of a randomised network they refute it only where that many votes for other classes would come
    less than once in a million times from a class that wins as it is certified to.
    """
    if not same_network(certificate, run):
        return None
    norm = certificate.specification.threat.norm
    names = ("content_hash", "label", "prediction", "radius", "index")
    proved = {
        row[0]: row[1:]
        for row in zip(*(certificate.table[name].to_pylist() for name in names), strict=True)
        if row[3] > 0 and row[1] == row[2]
    }
    columns = ("index", "content_hash", "label", "adversarial_prediction", f"distance_{norm}", "adversarial_margin")
    for index, content, label, seen, distance, margin in zip(
        *(run.table[name].to_pylist() for name in columns), strict=True
    ):
        if content not in proved or distance is None or seen == label:
            continue
        known, prediction, radius, _ = proved[content]
        if known != label or distance > radius:
            continue
        if "sigma" in certificate.specification.method.resolved and _by_chance(
            certificate, run, radius, distance, margin
        ):
            continue
        named = f"{certificate.path} and {run.path}"
        return (
            f"{named} contradict each other: image {index} ({content[:12]}) is certified as class {prediction} within "
            f"{norm} {eps_text(radius)} and was fooled to class {seen} at {distance:.6g}; one of the two is wrong: "
            "find out which, and move it away"
        )
    return None


def _by_chance(certificate: Certificate, run: Run, radius: float, distance: float, margin: float) -> bool:
    """Whether votes with this margin, label less the class ahead, may come where the certificate holds."""
    from scipy.stats import binom, norm

    sigma = certificate.specification.method.resolved["sigma"]
    share = float(norm.cdf((radius - distance) / sigma))
    votes = run.specification.votes
    # Votes for the label: at most what the class ahead leaves. One draw is no vote, and its margin is one of logits.
    most = np.floor(votes * (1 + margin) / 2) if votes > 1 else 0
    return float(binom.cdf(most, votes, share)) >= _CHANCE


def refute(*, certificates: Sequence[Certificate], runs: Sequence[Run]) -> None:
    """Raise RecordError, naming both files and the image, where one of the runs refutes one of the certificates."""
    for certificate in certificates:
        for run in runs:
            told = contradiction(certificate, run)
            if told:
                raise RecordError(told)


def refute_with_folder(
    directory: Path | str, *, certificate: Certificate | None = None, run: Run | None = None
) -> None:
    """`refute` for one that was just written, with all that are sound in the folder."""
    from .shards import run_files, sound_run

    if run is not None:
        refute(certificates=sound_certificates(directory)[0], runs=[run])
    if certificate is not None:
        for path in run_files(Path(directory)):
            try:
                found = sound_run(path)
            except RecordError:
                continue  # told where the leaderboard is derived
            refute(certificates=[certificate], runs=[found])


def certified_beside(run: Run, certificates: Sequence[Certificate]) -> dict[str, float | None]:
    """Certified accuracy over a run's own images at its eps, with its interval, by the best certificate of them all.

    The best is not the luckiest: of certificates that hold but for chance the surest counts, which is the one of the
    smallest alpha, then of the most draws.

    A certificate counts where it is of the same network and norm, and of an eps not below the run's or with a radius
    for every image. None where there is none.
    """
    best: int | None = None
    surest = (float("inf"), 0.0)
    threat, wanted = run.specification.threat, run.table["content_hash"].to_pylist()
    labels = run.table["label"].to_pylist()
    if run.specification.status == "complete" and not run.specification.attack.own_limits:
        for certificate in certificates:
            s = certificate.specification
            if s.threat.norm != threat.norm or not same_network(certificate, run):
                continue
            if not s.method.per_image and s.threat.eps < threat.eps:
                continue
            names = ("content_hash", "label", "correct", "radius")
            columns = (certificate.table[name].to_pylist() for name in names)
            rows = {
                (content, label): correct and radius >= threat.eps
                for content, label, correct, radius in zip(*columns, strict=True)
            }
            asked = [rows.get(key) for key in zip(wanted, labels, strict=True)]
            if None not in asked and asked:
                said = s.method.resolved
                sure, count = (float(said.get("alpha", 0.0)), -float(said.get("n", 0))), sum(map(bool, asked))
                # What is proved outright (alpha 0) may be added up: the best of several bounds holds.
                if best is None or sure < surest or (sure == surest == (0.0, -0.0) and count > best):
                    best, surest = count, sure
    n = run.table.num_rows
    low, high = (None, None) if best is None else wilson(best, n)
    return {"certified_accuracy": None if best is None else best / n, "certified_low": low, "certified_high": high}
