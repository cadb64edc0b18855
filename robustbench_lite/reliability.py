"""The words of a verdict: what each means, how findings decide between them, and what to run next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Word(StrEnum):
    """The first word of a verdict. A reason follows after a colon where there is one; `MEANING` defines each."""

    RELIABLE = "reliable"
    UPPER_BOUND = "upper bound"
    UNCHECKED = "unchecked"
    UNRELIABLE = "unreliable"
    INVALID = "invalid"


# One definition for the code, the tables and the documentation; docs/evaluate.md shows it word for word.
MEANING: dict[Word, str] = {
    Word.RELIABLE: "the model checks and all sanity checks ran and found no problem, or no image survived that could "
    "be checked; this does not prove that none exists",
    Word.UPPER_BOUND: "the attack does not search for the worst case of each image (a single step, random noise, a "
    "transfer, a limit of queries, a threat model of its own), so the sanity checks do not apply; the true robust "
    "accuracy is at most this number and may be far lower",
    Word.UNCHECKED: "the sanity checks were switched off (`--no-checks`, `checks=False`)",
    Word.UNRELIABLE: "a check found that the number is wrong or cannot be trusted; the reason follows",
    Word.INVALID: "the run measured no robust accuracy: nothing was attacked, or clean accuracy is not above chance; "
    "the reason follows",
}


@dataclass(frozen=True)
class Finding:
    """Something the user should know; `fatal` ones make the number unreliable, `invalid` ones make it none.

    advice: what to do next, in a few words; empty where the answer is a stronger attack.
    """

    text: str
    fatal: bool
    invalid: bool = False
    advice: str = ""

    @property
    def reason(self) -> str:
        """The short form that a verdict gives."""
        return self.text.split(":")[0].split(";")[0]


@dataclass
class Checked:
    """What checks found, and the names of those that ran."""

    findings: list[Finding] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def add(self, name: str, findings: Iterable[Finding] = ()) -> list[Finding]:
        """Note that a check ran, and what it found."""
        found = list(findings)
        self.ran.append(name)
        self.findings += found
        return found


def word_of(verdict: str) -> Word | None:
    """The word of a verdict; None for a text that is none.

    >>> word_of("unreliable: more steps"), word_of("ok")
    (<Word.UNRELIABLE: 'unreliable'>, None)
    """
    first = verdict.split(": ")[0]
    return Word(first) if first in set(Word) else None


def decide(findings: Iterable[Finding], *, checked: bool = True, bound: str | None = None) -> str:
    """The verdict on a run, one line: a word, and the reason where there is one.

    checked: whether sanity checks were asked for. bound: why they do not apply to images that survived, or None.
    """
    found = list(findings)
    for word, deciding in ((Word.INVALID, [f for f in found if f.invalid]), (Word.UNRELIABLE, _fatal(found))):
        if deciding:
            return f"{word}: {'; '.join(dict.fromkeys(finding.reason for finding in deciding))}"
    if not checked:
        return str(Word.UNCHECKED)
    return f"{Word.UPPER_BOUND}: {bound}" if bound else str(Word.RELIABLE)


def next_step(findings: Iterable[Finding], verdict: str, *, stronger: str) -> str:
    """What to run after this verdict, one line; empty after `reliable`. stronger: how to attack harder."""
    found, word = list(findings), word_of(verdict)
    if word in (Word.INVALID, Word.UNRELIABLE):
        deciding = [f for f in found if f.invalid] if word is Word.INVALID else _fatal(found)
        said = dict.fromkeys(finding.advice or stronger for finding in deciding)
        return "; or ".join(list(said)[:2])
    if word is Word.UNCHECKED:
        return "run the same command without --no-checks (checks=True)"
    return stronger if word is Word.UPPER_BOUND else ""


def _fatal(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.fatal and not finding.invalid]


def joined(verdicts: Iterable[str], findings: Iterable[Finding] = ()) -> str:
    """The verdict on a run in parts, by those on the parts, and what was found of the whole.

    The worst word holds, with the reasons of all parts that have it. Texts that are no verdicts are listed.
    """
    found, given = list(findings), list(dict.fromkeys(verdict for verdict in verdicts if verdict))
    if any(word_of(verdict) is None for verdict in given):
        return "; ".join(given)
    whole = decide(found) if found else ""
    every = list(dict.fromkeys([*given, *([whole] if whole and whole != Word.RELIABLE else [])]))
    for word in (Word.INVALID, Word.UNRELIABLE, Word.UNCHECKED, Word.UPPER_BOUND, Word.RELIABLE):
        chosen = [verdict.partition(": ")[2] for verdict in every if word_of(verdict) is word]
        if chosen:
            reasons = dict.fromkeys(reason for text in chosen for reason in text.split("; ") if reason)
            return f"{word}: {'; '.join(reasons)}" if reasons else str(word)
    return ""
