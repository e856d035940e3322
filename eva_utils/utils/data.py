"""Datasets to loaders: where the images come from, their mean, standard deviation and class names."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import shapes
from .checks import check_seed, check_whole
from .images import ImageFiles
from .loader import Loader
from .names import unknown_name
from .runtime import memory_bytes, pick_device
from .transforms import Compose, test_transform, train_transform

# Of the 50,000 training images, for pixels in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

SOURCES = ("shapes", "cifar10")
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Split = tuple[Tensor | ImageFiles, Tensor]


@dataclass(frozen=True)
class Data:
    """The loaders of a dataset; `mean` and `std` are those it was normalized with, `validation` may be None.

    `source` says in a few words what the images are, for a report.
    """

    train: Loader
    validation: Loader | None
    test: Loader
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""


def load_data(
    source: str | Path,
    root: str | Path = "data",
    batch_size: int = 128,
    recipe: str | None = None,
    validation: int = 0,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> Data:
    """Load a dataset as loaders of normalized float32 batches (N, 3, H, W) with labels int64 (N,).

    Images that fit into half of the memory are decoded once and stay there as uint8; others are decoded
    by a `DataLoader` as they are needed. The batches are the same either way. Mean and standard deviation
    are CIFAR-10's own, or computed from the training images that are used.

    Args:
        source: "shapes" (embedded, drawn in seconds), "cifar10" (downloaded to `root` once), or a folder
            with images under train/<class>/ and test/<class>/.
        root: where "cifar10" is kept.
        batch_size: images in a batch; the last may be smaller.
        recipe: augmentation of the training images, see `eva_utils.utils.transforms.train_transform`;
            None is "none".
        validation: training images to hold out, in the classes' proportions, chosen by the seed.
        size: side in pixels to which a folder's images are resized.
        limit: keep only so many images of each split, in the classes' proportions, chosen by the seed.
        seed: of the order, the augmentation and the choices above.
        device: where the images are kept and the batches are made; None is CUDA if there is one, else the CPU.
        workers: processes that decode images which do not fit into memory.

    Raises:
        ValueError: an argument is out of range, or the folder is not laid out as above.
        RuntimeError: CIFAR-10 is absent and cannot be downloaded.
    """
    check_whole("batch_size", batch_size, 1)
    check_whole("validation", validation, 0)
    check_whole("workers", workers, 0)
    check_seed(seed)
    if size is not None:
        check_whole("size", size, 8, 10_000)
    if limit is not None:
        check_whole("limit", limit, 1)
    placed = pick_device(device)
    if device is None and placed.type != "cuda":
        placed = torch.device("cpu")
    train_transform(recipe or "none", (0.5,), (0.5,))  # refuses an unknown recipe before anything is read

    train, test, classes = _read(source, Path(root), size)
    if validation >= len(train[1]):
        raise ValueError(
            f"validation={validation} would hold out all of the {len(train[1])} training images; hold out fewer"
        )
    held = _stratified(train[1], validation, seed)
    kept = torch.ones(len(train[1]), dtype=torch.bool)
    kept[held] = False
    splits = [_pick(train, kept.nonzero().flatten()), _pick(train, held), test]
    if limit is not None:
        splits = [_pick(split, _stratified(split[1], limit, seed)) for split in splits]
    memory = min(memory_bytes(placed), memory_bytes(torch.device("cpu")))
    fits = _uint8_bytes([images for images, _ in splits]) <= memory // 2
    if fits:
        splits = [(_decode(images) if isinstance(images, ImageFiles) else images, labels) for images, labels in splits]
    known = (CIFAR10_MEAN, CIFAR10_STD) if source == "cifar10" else None
    mean, std = known or _statistics(splits[0][0], workers)

    def loader(split: Split, transform: Compose, shuffle: bool = False) -> Loader:
        return Loader(
            *split, transform, batch_size=batch_size, shuffle=shuffle, seed=seed, device=placed, workers=workers
        )

    plain = test_transform(mean, std)
    return Data(
        train=loader(splits[0], train_transform(recipe or "none", mean, std), shuffle=True),
        validation=loader(splits[1], plain) if validation else None,
        test=loader(splits[2], plain),
        classes=classes,
        mean=mean,
        std=std,
        source=_describe_source(source, train[0]),
    )


def _read(source: str | Path, root: Path, size: int | None) -> tuple[Split, Split, list[str]]:
    """Return the training split, the test split and the class names."""
    if source in SOURCES and size is not None:
        raise ValueError(f"size resizes a folder's images; {source!r} has its own: leave size out")
    if source == "shapes":
        train, test = shapes.make_shapes("train"), shapes.make_shapes("test")
        return (train.images, train.labels), (test.images, test.labels), list(shapes.CLASSES)
    if source == "cifar10":
        return _read_cifar10(root)
    folder = Path(source)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; unpack it and give the folder that holds train/ and test/")
    if not folder.is_dir():
        raise unknown_name("data source (and no such folder)", str(source), SOURCES)
    for part in ("train", "test"):
        if (folder / part).is_symlink() and not (folder / part).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder / part} is a link that leads out of the dataset; put the folder itself there")
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no {part}/ folder; put the images under train/<class>/ and test/<class>/")
    classes = _class_names(folder / "train")
    if classes != _class_names(folder / "test"):
        odd = sorted(set(classes) ^ set(_class_names(folder / "test")))
        raise ValueError(f"train/ and test/ of {folder} must hold the same classes; only one has {', '.join(odd)}")
    return _list_images(folder / "train", classes, size), _list_images(folder / "test", classes, size), classes


def _describe_source(source: str | Path, images: Tensor | ImageFiles) -> str:
    """Name the dataset; of a folder its name and what its files are, since JPEG files have lost detail."""
    if isinstance(images, Tensor):
        return {"shapes": "shapes, drawn", "cifar10": "CIFAR-10"}[str(source)]
    suffixes = Counter(path.suffix.lower().lstrip(".").replace("jpeg", "jpg") for path in images.paths)
    kinds = ", ".join("JPEG-coded" if kind == "jpg" else kind.upper() for kind, _ in suffixes.most_common(3))
    return f"{Path(source).resolve().name}, {kinds} image files"


def _read_cifar10(root: Path) -> tuple[Split, Split, list[str]]:
    from torchvision.datasets import CIFAR10

    unpacked, archive = root / CIFAR10.base_folder, root / CIFAR10.filename
    if not unpacked.is_dir() and archive.exists():
        digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
        if digest != CIFAR10.tgz_md5:
            raise ValueError(
                f"{archive} is damaged or holds another dataset (MD5 {digest}, not {CIFAR10.tgz_md5}); "
                "remove it to download it again"
            )
    try:
        train, test = (CIFAR10(str(root), train=part, download=not unpacked.is_dir()) for part in (True, False))
    except (OSError, RuntimeError) as error:
        if unpacked.is_dir():
            raise ValueError(f"{unpacked} is incomplete or damaged; remove it to download it again") from error
        raise RuntimeError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}); "
            f"use 'shapes' or a folder of images, or put {CIFAR10.filename} there"
        ) from error
    train_split, test_split = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return train_split, test_split, list(train.classes)


def _entries(folder: Path) -> list[Path]:
    """List a folder by name, without what is hidden; a link may not lead out of the dataset."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_symlink():
            root = folder.resolve().parents[0 if folder.name in ("train", "test") else 1]
            if not path.resolve().is_relative_to(root):
                raise ValueError(f"{path} is a link that leads out of the dataset; put the files themselves there")
        found.append(path)
    return found


def _class_names(folder: Path) -> list[str]:
    names = [path.name for path in _entries(folder) if path.is_dir()]
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class folder"
        raise ValueError(
            f"{folder} has {found}; put the images of each of two classes or more into a folder of its name"
        )
    return names


def _list_images(folder: Path, classes: list[str], size: int | None) -> Split:
    """List the image files of each class in order of their names; hidden and other files are ignored."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [path for path in _entries(folder / name) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise ValueError(f"{folder / name} has no image; add some or remove the folder")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(paths, size), torch.tensor(labels)


def _stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` positions, each class in its share, by the seed; ascending."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place.argsort(stable=True)[:count].sort().values


def _pick(split: Split, positions: Tensor) -> Split:
    images, labels = split
    if len(positions) == len(labels):
        return split
    return images.pick(positions) if isinstance(images, ImageFiles) else images[positions], labels[positions]


def _uint8_bytes(parts: list[Tensor | ImageFiles]) -> int:
    """Return what the images take as uint8; a folder's are taken to be as large as its first."""
    return sum(len(part) * part[0].numel() for part in parts if len(part))


def _decode(files: ImageFiles) -> Tensor:
    """Decode all files into one uint8 tensor (N, 3, H, W)."""
    if not len(files):
        return torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    images = torch.empty(len(files), *files[0].shape, dtype=torch.uint8)
    for index in range(len(files)):
        images[index] = files[index]
    return images


def _statistics(images: Tensor | ImageFiles, workers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation for pixels in [0, 1], exact from counts of the 256 levels."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    if isinstance(images, Tensor):
        batches: Iterable[Tensor] = images.split(1000)
    else:
        batches = DataLoader(images, 100, num_workers=workers, generator=torch.Generator())
    for batch in batches:
        for channel in range(3):
            counts[channel] += torch.bincount(batch[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = (share * levels).sum(dim=1)
    std = (share * (levels - mean[:, None]) ** 2).sum(dim=1).sqrt().clamp(min=1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())
