"""TinyImageNet as its archive unpacks: a flat val/ folder with an annotations file (Stanford CS231n, 2015)."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

_ANNOTATIONS = Path("val") / "val_annotations.txt"

Listing = tuple[list[Path], Tensor]


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether a folder is TinyImageNet's as unpacked, or a part of it, and not rearranged into test/<class>/."""
    rearranged = any(path.is_dir() and path.name != "images" for path in (folder / "test").glob("*"))
    named = (folder / "wnids.txt").exists() or (folder / _ANNOTATIONS).exists()
    return not rearranged and (named or any(path.is_dir() for path in folder.glob("train/n????????/images")))


def read_tiny_imagenet(folder: Path) -> tuple[Listing, Listing, list[str]]:
    """List the training images, the validation images as test images, and the class names.

    The images under test/ have no labels and are left out. A class is named by its first word in
    words.txt, with its WordNet number where two would be named alike.

    Args:
        folder: tiny-imagenet-200, with train/, val/, wnids.txt and words.txt.

    Returns:
        (paths, labels) of either split, labels int64 (N,) in the order of the WordNet numbers; the names.

    Raises:
        ValueError: the folder is half unpacked or a list in it damaged; what and where is named.
    """
    numbers = sorted(_lines(folder, Path("wnids.txt")))
    words = dict(line.split("\t", 1) for line in _lines(folder, Path("words.txt")) if "\t" in line)
    labels = {number: label for label, number in enumerate(numbers)}
    trained = [
        (Path("train") / number / "images" / line.split("\t")[0], label)
        for number, label in labels.items()
        for line in _lines(folder, Path("train") / number / f"{number}_boxes.txt")
    ]
    tested = []
    for line in _lines(folder, _ANNOTATIONS):
        name, number = (*line.split("\t"), "")[:2]
        if number not in labels:
            raise ValueError(f"{folder / _ANNOTATIONS}: no class of wnids.txt is named in {line!r}; unpack it again")
        tested.append((_ANNOTATIONS.parent / "images" / name, labels[number]))
    firsts = [words.get(number, number).split(",")[0].strip() for number in numbers]
    counts = Counter(firsts)
    classes = [name if counts[name] == 1 else f"{name} {number}" for name, number in zip(firsts, numbers, strict=True)]
    return _listing(folder, trained), _listing(folder, tested), classes


def _lines(folder: Path, name: Path) -> list[str]:
    """Return a file's lines that are not empty, at least one."""
    try:
        text = (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _half_unpacked(folder, f"{name} missing") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise _half_unpacked(folder, f"{name} is empty")
    return lines


def _listing(folder: Path, files: list[tuple[Path, int]]) -> Listing:
    listed = {path for path, _ in files}
    there = {parent / path.name for parent in {path.parent for path in listed} for path in (folder / parent).glob("*")}
    missing = sorted(listed - there)
    unlisted = sorted(path for path in there - listed if path.suffix == ".JPEG" and not path.name.startswith("."))
    if missing:
        raise _half_unpacked(folder, f"{_first_of(missing)} missing")
    if unlisted:
        raise ValueError(
            f"{folder}: {_first_of(unlisted)} not in the list that names the images of that folder; if the list was "
            "cut, unpack tiny-imagenet-200.zip again, else move these images away"
        )
    return [folder / path for path, _ in files], torch.tensor([label for _, label in files])


def _first_of(paths: list[Path]) -> str:
    return f"{paths[0]}" + (f" and {len(paths) - 1} more images" if len(paths) > 1 else "")


def _half_unpacked(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder} is half unpacked: {what}; unpack tiny-imagenet-200.zip again")
