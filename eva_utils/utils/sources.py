"""Where datasets come from: drawn, downloaded by torchvision, or read from folders; two splits and the class names."""

import hashlib
import os
import pickle
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from . import shapes
from .images import ImageFiles
from .names import unknown_name
from .tiny_imagenet import is_tiny_imagenet, read_tiny_imagenet

TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
SOURCES = ("shapes", *TORCHVISION)
JPEG = {".jfif", ".jpeg", ".jpg"}
IMAGE_SUFFIXES = JPEG | {".bmp", ".gif", ".png", ".ppm", ".tif", ".tiff", ".webp"}
NO_IMAGES = {".csv", ".db", ".ini", ".json", ".md", ".txt", ".xml"}
PARTS = {"train", "test", "val"}
LAYOUT = "train/<class>/ with test/<class>/ or val/<class>/, or <class>/ alone with test_share="

Split = tuple[Tensor | ImageFiles, Tensor]


def read_source(source: str | Path, root: Path, size: int | None = None) -> tuple[Split, Split, list[str]]:
    """Return the training split, the test split and the class names.

    A split is uint8 (N, 3, H, W) or the image files, and int64 labels (N,).

    Args:
        source: see `eva_utils.utils.data.load_data`.
        root: where torchvision keeps what it downloads, and where a folder is looked for that is not here.
        size: side to which image files are resized as they are read; tensors are left as they are.

    Raises:
        ValueError: the source is unknown, damaged, or a folder laid out otherwise.
        RuntimeError: a dataset is absent and cannot be downloaded.
    """
    if source in SOURCES:
        if source == "shapes":
            train, test = ((part.images, part.labels) for part in map(shapes.make_shapes, ("train", "test")))
            return train, test, list(shapes.CLASSES)
        return _read_torchvision(TORCHVISION[str(source)], root)
    folder = Path(source)
    if not folder.exists() and (root / folder).is_dir():
        folder = root / folder
    if folder.is_file() and folder.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(
            f"{folder} is an image; load_data takes a folder of them, which holds {LAYOUT}. To classify one picture "
            'see "A picture of your own" in docs/guide.md'
        )
    if folder.is_file():
        raise ValueError(f"{folder} is a file; unpack it and give the folder, which holds {LAYOUT}")
    if not folder.is_dir():
        error = str(unknown_name("data source", str(source), SOURCES))
        raise ValueError(
            f"{error if error.endswith('?') else error + '.'} There is no folder {source} either, here or in {root}; "
            f"one holds TinyImageNet, or images under {LAYOUT}"
        )
    if is_tiny_imagenet(folder):
        (train_paths, train_labels), (test_paths, test_labels), classes = read_tiny_imagenet(folder)
        return (ImageFiles(train_paths, size), train_labels), (ImageFiles(test_paths, size), test_labels), classes
    return _read_folder(folder, size)


def describe_source(source: str | Path, images: Tensor | ImageFiles) -> str:
    """Name the dataset; of a folder its name and what its files are, since JPEG files have lost detail."""
    if isinstance(images, Tensor):
        named = {"shapes": "shapes, drawn", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
        return named.get(str(source)) or TORCHVISION[str(source)]
    kinds = Counter("JPEG-coded" if path.suffix.lower() in JPEG else path.suffix[1:].upper() for path in images.paths)
    return f"{Path(source).resolve().name}, {', '.join(kind for kind, _ in kinds.most_common(3))} image files"


def _read_torchvision(name: str, root: Path) -> tuple[Split, Split, list[str]]:
    from torchvision import datasets

    kind = getattr(datasets, name)
    cifar = hasattr(kind, "tgz_md5")
    unpacked = root / kind.base_folder if cifar else root / name / "raw"
    archive = root / kind.filename if cifar else unpacked
    if cifar and not unpacked.is_dir() and archive.exists():
        digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
        if digest != kind.tgz_md5:
            raise ValueError(
                f"{archive} is damaged or holds another dataset (MD5 {digest}, not {kind.tgz_md5}); "
                "remove it to download it again"
            )
    # A download that broke off leaves the folder of MNIST's files behind it, with fewer of them.
    complete = unpacked.is_dir() and (cifar or len(list(unpacked.glob("*-ubyte"))) == len(kind.resources))
    try:
        train, test = (kind(str(root), train=part, download=not complete) for part in (True, False))
        splits = _as_tensors(train), _as_tensors(test)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError, KeyError, pickle.UnpicklingError) as error:
        if complete:
            raise ValueError(f"{unpacked} is incomplete or damaged; remove it to download it again") from error
        advice = f"use 'shapes' or a folder of images, or put {archive.name if cifar else unpacked} there"
        if (root / "train").is_dir():
            advice = f"{root} seems to hold images of its own: load_data({str(root)!r}) loads them"
        raise RuntimeError(f"{name} is not in {root} and could not be downloaded ({error}); {advice}") from error
    return *splits, list(train.classes)


def _as_tensors(dataset) -> tuple[Tensor, Tensor]:
    """Return a torchvision dataset's pixels as uint8 (N, 3, H, W), grey ones repeated, and its labels."""
    pixels = torch.as_tensor(dataset.data)
    images = pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    labels = torch.as_tensor(dataset.targets)
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    return images.contiguous(), labels.long()


def _read_folder(folder: Path, size: int | None) -> tuple[Split, Split, list[str]]:
    """Read train/<class>/ and test/<class>/, or val/ if there is no test/; or <class>/ alone, with nothing to test."""
    held = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    if not PARTS & set(held) and any(_images(folder / name, folder) for name in held):
        classes = _class_names(folder, folder)
        return _list_images(folder, classes, size, folder), (ImageFiles([], size), torch.empty(0).long()), classes
    trained, tested = folder / "train", folder / ("val" if "val" in held and "test" not in held else "test")
    for part in (trained, tested):
        if part.is_symlink() and not part.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{part} is a link that leads out of the dataset; put the folder itself there")
        if not part.is_dir():
            found = f" and holds {', '.join(f'{name}/' for name in held[:5])}" if held else ""
            raise ValueError(f"{folder} has no {part.name}/ folder{found}; {_advice(folder, held)}")
    if tested.name == "test" and "val" in held and not any(path.is_dir() for path in _entries(tested, folder)):
        raise ValueError(f"{tested} has no class folder, so no labels; rename it, and {folder / 'val'} is tested on")
    classes = _class_names(trained, folder)
    odd = sorted(set(classes) ^ set(_class_names(tested, folder)))
    if odd:
        raise ValueError(
            f"train/ and {tested.name}/ of {folder} must hold the same classes; only one has {', '.join(odd)}"
        )
    return _list_images(trained, classes, size, folder), _list_images(tested, classes, size, folder), classes


def _advice(folder: Path, held: list[str]) -> str:
    """Say what a folder that holds these folders, and lacks a part, may be meant to be."""
    nested = [folder / name for name in held if (folder / name / "train").is_dir()]
    if nested:
        return f"give {nested[0]}, which has train/"
    if "train" in held and not _images(folder / "train", folder):
        return f"rename the folder of the test images, or give {folder / 'train'} with test_share=0.2 to divide it"
    if PARTS & set(held):
        return "a folder named train/, test/ or val/ is taken for a part, of classes, and not for a class"
    return f"it takes {LAYOUT}"


def _entries(folder: Path, root: Path) -> list[Path]:
    """List a folder by name, but for what is hidden; a link may not lead out of the dataset's root."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden(entry.name):
            continue
        path = Path(entry.path)
        if entry.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{path} is a link that leads out of the dataset; put the files themselves there")
        found.append(path)
    return found


def _is_hidden(name: str) -> bool:
    """Whether a file or folder does not belong to the dataset; an archive made on a Mac brings __MACOSX along."""
    return name.startswith(".") or name == "__MACOSX"


def _images(folder: Path, root: Path) -> list[Path]:
    """List a folder's image files by name; other files are ignored."""
    return [path for path in _entries(folder, root) if path.suffix.lower() in IMAGE_SUFFIXES]


def _class_names(folder: Path, root: Path) -> list[str]:
    names = [path.name for path in _entries(folder, root) if path.is_dir()]
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class folder"
        raise ValueError(
            f"{folder} has {found}; put the images of each of two classes or more into a folder of its name"
        )
    return names


def _list_images(folder: Path, classes: list[str], size: int | None, root: Path) -> Split:
    """List the image files of each class in order of their names."""
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    deeper: list[Path] = []
    for label, name in enumerate(classes):
        entries = _entries(folder / name, root)
        found = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
        unknown = [path for path in entries if path.suffix.lower() not in IMAGE_SUFFIXES | NO_IMAGES]
        others.update(path.suffix.lower() or "without a suffix" for path in unknown if path.is_file())
        deeper += [path for path in unknown if path.is_dir() and _images(path, root)]
        if not found:
            raise ValueError(f"{folder / name} has no image; add some or remove the folder")
        paths += found
        labels += [label] * len(found)
    if deeper:
        warnings.warn(
            f"images in folders inside a class's, as {deeper[0]}, are left out; move them up into {deeper[0].parent}",
            stacklevel=5,
        )
    if others:
        named = ", ".join(f"{count} {kind}" for kind, count in others.items())
        warnings.warn(
            f"files of {folder} are left out: {named}; make .jpg or .png files of them if they are images", stacklevel=5
        )
    return ImageFiles(paths, size), torch.tensor(labels)
