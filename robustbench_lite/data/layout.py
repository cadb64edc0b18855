"""Which folders of a folder of images are splits, and which are classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .reading import shortened

# In this order for the split "test": test images where there are any, else validation images.
ALIASES = {
    "train": ("train", "training", "trn", "tr"),
    "test": ("test", "testing", "tests", "tst", "te"),
    "val": ("val", "valid", "validation", "validating", "validate", "dev", "eval", "evaluation", "holdout"),
}
WANTED = {"train": ("train",), "test": ("test", "val")}
_NOISE = ("dataset", "data", "set", "images", "image", "imgs", "img", "split", "folder", "samples", "seg")
# Left behind by operating systems, archives and editors.
JUNK = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "__pycache__", "$recycle.bin")


@dataclass(frozen=True)
class Layout:
    """Class folders by split.

    parts: of "train", "test" and "val", where they are there: the folder of each class, relative to the root.
    classes: the classes' folder names of all splits, sorted as text. notes: what needed a decision.
    """

    parts: Mapping[str, Mapping[str, str]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def folders(self, split: str) -> Mapping[str, str] | None:
        """The class folders of the split "train" or "test"; None where there are none."""
        return next((self.parts[name] for name in WANTED[split] if name in self.parts), None)


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that no user put there."""
    return name.startswith((".", "~$")) or name.casefold() in JUNK


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted as text; hidden ones are none of the user's classes."""
    return sorted(entry.name for entry in entries(root) if entry.is_dir() and not is_junk(entry.name))


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder. Raises UserError where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise UserError(
            f"--dataset: the folder {folder} cannot be read ({error.strerror}); mend or remove it"
        ) from None


def split_name(name: str) -> str | None:
    """The split that a folder's name stands for: "train", "test" or "val"; None for any other name.

    >>> [split_name(name) for name in ("Training", "TEST_SET", "valid", "seg_train", "train2017", "test tube")]
    ['train', 'test', 'val', 'train', 'train', None]
    """
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    words = [word for word in words if word not in _NOISE]
    if len(words) != 1 or re.search(r"[^\W\d_a-zA-Z]", name):
        return None
    word = words[0]
    for noise in _NOISE:
        word = word.removesuffix(noise) or word
    return next((split for split, names in ALIASES.items() if word in names), None)


def find_layout(root: Path, where: str) -> Layout:
    """The layout of a folder: ROOT/CLASS, ROOT/SPLIT/CLASS or ROOT/CLASS/SPLIT.

    Args:
        root: The folder.
        where: What errors call it.

    Raises:
        UserError: Where there is no class folder, or where a folder may be a split as well as a class.
    """
    top = class_folders(root)
    if not top:
        raise UserError(f"{where} must hold one folder for each class, found none")
    splits = {name: split for name in top if (split := split_name(name))}
    inner = {name: class_folders(root / name) for name in splits}
    deep = [name for name in splits if inner[name]]
    if not splits:
        return _within_classes(root, top, where) or _plain(root, top)
    if not deep:
        return _flat(top, splits, where)
    return _by_split(root, top, splits, {name: inner[name] for name in deep}, where)


def _plain(root: Path, top: Sequence[str]) -> Layout:
    """ROOT/CLASS/*.jpg; where ROOT is the test part of a data set, with the class list of its training part."""
    beside = _training_beside(root)
    if beside is not None and set(top) < set(learned := class_folders(beside)):
        return Layout(
            {"test": {name: name for name in top}}, tuple(learned), (f"class list of {beside.name}/ beside it",)
        )
    return Layout({"test": {name: name for name in top}}, tuple(top))


def _training_beside(root: Path) -> Path | None:
    """The training part of the data set whose test part `root` is by its name; None where there is none."""
    root = root.resolve()
    if split_name(root.name) not in WANTED["test"]:
        return None
    return next((root.parent / name for name in class_folders(root.parent) if split_name(name) == "train"), None)


def _within_classes(root: Path, top: Sequence[str], where: str) -> Layout | None:
    """ROOT/CLASS/SPLIT/*.jpg, where every folder in every class folder is a split; None for any other layout."""
    parts: dict[str, dict[str, str]] = {}
    for name in top:
        found = {inner: split for inner in class_folders(root / name) if (split := split_name(inner))}
        if not found or len(found) < len(class_folders(root / name)):
            return None
        if any(class_folders(root / name / inner) for inner in found):
            raise UserError(f"{where}: the splits are in {name}/; give {where.removeprefix('--dataset: ')}/{name}")
        for inner, split in found.items():
            if name in parts.setdefault(split, {}):
                raise UserError(f"{where}: {name}/ has two folders for the split {split}; keep one of them")
            parts[split][name] = f"{name}/{inner}"
    return Layout(parts, tuple(top), ("splits found within the class folders",))


def _flat(top: Sequence[str], splits: Mapping[str, str], where: str) -> Layout:
    """Folders named as splits are, which hold no folders: one of them among others is a class."""
    first = next(iter(splits))
    if len(splits) == 1 and len(top) > 1:
        return Layout({"test": {name: name for name in top}}, tuple(top), (f"the folder {first}/ is read as a class",))
    names = " and ".join(f"{name}/" for name in splits)
    raise UserError(
        f"{where}: {names} {'is' if len(splits) == 1 else 'are'} named as a split, but without class folders inside; "
        f"put the images into {first}/CLASS/, or, where the names are classes, rename them (class-{first})"
    )


def _by_split(
    root: Path, top: Sequence[str], splits: Mapping[str, str], deep: Mapping[str, Sequence[str]], where: str
) -> Layout:
    """ROOT/SPLIT/CLASS/*.jpg."""
    others = [name for name in top if name not in splits]
    kinds = {splits[name] for name in deep}
    if others and len(kinds) == 1 and any(_holds_files(root / name) for name in others):
        name, other = next(iter(deep)), shortened([f"{each}/" for each in others])
        raise UserError(
            f"{where}: is {name}/ a split or a class? It holds folders, but beside it is {other}; move what is no "
            f"split elsewhere, or, where {name} is a class, rename it (class-{name})"
        )
    parts: dict[str, dict[str, str]] = {}
    for name, classes in deep.items():
        if splits[name] in parts:
            twice = " and ".join(f"{each}/" for each in deep if splits[each] == splits[name])
            raise UserError(f"{where}: {twice} both hold the split {splits[name]}; keep one of them")
        parts[splits[name]] = {each: f"{name}/{each}" for each in classes}
    notes = [f"folders ignored: {shortened(others)}"] if others else []
    if flat := [name for name in splits if name not in deep]:
        notes.append(f"without class folders, so ignored: {shortened([f'{name}/' for name in flat])}")
    if "test" in parts and "val" in parts:
        notes.append(f"{next(name for name in deep if splits[name] == 'val')}/ is not used")
    notes += _differences(parts, {splits[name]: name for name in deep}, where)
    return Layout(parts, tuple(sorted(set().union(*parts.values()))), tuple(notes))


def _holds_files(folder: Path) -> bool:
    return any(not is_junk(entry.name) and entry.is_file() for entry in entries(folder))


def _differences(parts: Mapping[str, Mapping[str, str]], names: Mapping[str, str], where: str) -> Iterator[str]:
    """Notes on classes that only one split has. UserError where the splits' folders cannot be the same classes."""
    by_key: dict[str, str] = {}
    for classes in parts.values():
        for name in classes:
            other = by_key.setdefault(name.casefold(), name)
            if other != name:
                raise UserError(f"{where}: are {other}/ and {name}/ of different splits one class? Give it one name")
    if "train" not in parts:
        return
    learned = set(parts["train"])
    for split in ("test", "val"):
        found = set(parts.get(split, {}))
        if found and not found & learned:
            raise UserError(
                f"{where}: {names[split]}/ has the folders {shortened(sorted(found))}, {names['train']}/ has "
                f"{shortened(sorted(learned))}: no class in common; sort the images into the same class folders"
            )
        if found - learned:
            yield f"classes without training images: {shortened(sorted(found - learned))}"
