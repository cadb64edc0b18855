"""The exception tree: what went wrong, and whose it is to mend.

RblError
|-- UserError        the caller can mend it: one line, exit status 2
|   |-- PluginError  somebody else's code raised: its traceback, then one line, exit status 2
|   `-- AccessError  an attack asked its query for more than it declared
`-- RecordError      a file on disk is not what it should be: named and left alone, exit status 2
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RblError(Exception):
    """Whatever robustbench-lite raises on purpose."""


class UserError(RblError, ValueError):
    """An argument that the caller can mend; the message names it, what was expected and what came."""


class PluginError(UserError):
    """Code from outside (a plug-in file, a model factory) raised; the cause is its own exception."""


class AccessError(UserError):
    """An attack asked its query for more than the access level it declares."""


class RecordError(RblError):
    """A file on disk is corrupt, foreign or does not prove what it says; it is left as it was found."""


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names so like this one that it may be a slip for them, in capitals or not.

    >>> near_names("PGD", ["pgd", "tpgd"]), near_names("l7", ["l1", "l2"])
    (['pgd'], [])
    """
    spelled: dict[str, str] = {}
    for each in known:
        spelled.setdefault(each.lower(), each)
    if name.lower() in spelled:
        return [spelled[name.lower()]]
    return [spelled[low] for low in difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.65)]


def close_names(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the close ones, or all where none is close.

    >>> close_names("pdg", ["pgd", "fgsm"])
    'did you mean pgd?'
    """
    names = sorted(set(known))
    close = near_names(name, names)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}" if names else "none is known"


def unknown_name(argument: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nothing answers to."""
    return UserError(f"{argument}: unknown name {name!r}; {close_names(name, known)}")
