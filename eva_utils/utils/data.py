"""Datasets to loaders: where the images come from, their mean, standard deviation and class names."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checks import check_real, check_seed, check_whole
from .images import ImageFiles
from .loader import Loader, take_fingerprint
from .names import enumerated
from .pixels import batches, decode, resize, statistics, uint8_bytes
from .runtime import memory_bytes, pick_device
from .sources import Split, describe_source, read_source
from .splits import hold_out, pick, split_anew, stratified
from .transforms import Compose, test_transform, train_transform

# Of the 50,000 training images, for pixels in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, repr=False)
class Data:
    """The loaders of a dataset; `mean` and `std` are those it was normalized with, `validation` may be None.

    `source` says in a few words what the images are, for a report; `test_share` is None for the dataset's own split.
    """

    train: Loader
    validation: Loader | None
    test: Loader
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    test_share: float | None = None

    def __repr__(self) -> str:
        shown = self.classes if len(self.classes) <= 12 else [*self.classes[:10], "…"]
        names = enumerated(shown)
        mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std))
        loaders = {"train": self.train, "validation": self.validation, "test": self.test}
        lines = [f"  {name}: {loader}" for name, loader in loaders.items() if loader is not None]
        lines += [f"  {len(self.classes)} classes: {names}", f"  mean {mean}; standard deviation {std}"]
        return "\n".join([f"Data of {self.source or 'images'}", *lines])


def load_data(
    source: str | Path,
    root: str | Path = "data",
    batch_size: int = 128,
    recipe: str | Callable[..., Any] | None = None,
    validation: int = 0,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int = 0,
    test_share: float | None = None,
) -> Data:
    """Load a dataset as loaders of normalized float32 batches (N, 3, H, W) with labels int64 (N,).

    Images that fit into half of the memory are decoded once and stay there as uint8; others are decoded
    by a `DataLoader` as they are needed. The batches are the same either way. Mean and standard deviation
    are CIFAR-10's own, or computed from the training images that are used.

    Args:
        source: "shapes" (embedded, drawn in seconds); "cifar10", "cifar100", "mnist" or "fashion_mnist"
            (downloaded to `root` once; grey images become three equal channels); a folder with images under
            train/<class>/ and test/<class>/ (val/<class>/ where there is no test/, else val/ is left out), or under
            <class>/ alone, for `test_share` to divide; or TinyImageNet's as its archive unpacks.
        root: where downloads are kept, and where a folder is looked for that is not in the current one.
        batch_size: images in a batch; the last may be smaller.
        recipe: augmentation of the training images, see `eva_utils.utils.transforms.train_transform`;
            None is "none". Or a pipeline of your own: an `albumentations.Compose` or a
            `torchvision.transforms.v2` module, applied to each uint8 image before Normalize.
        validation: training images to hold out, in the classes' proportions, chosen by the seed.
        size: side in pixels to which the images are resized; None leaves them as they are.
        limit: keep only so many images of each split, in the classes' proportions, chosen by the seed.
        seed: of the order, the augmentation and the choices above.
        device: where the images are kept and the batches are made; None is CUDA if there is one, else the CPU.
        workers: processes that decode images which do not fit into memory.
        test_share: put training and test images together and split them anew, in the classes' proportions, by
            the seed, so that this share is for testing; None keeps the dataset's own split.

    Raises:
        ValueError: an argument is out of range, or the folder is not laid out as above.
        TypeError: root is no path, or recipe neither a name nor a pipeline.
        RuntimeError: the dataset is absent and cannot be downloaded.
    """
    if not isinstance(root, str | Path):
        raise TypeError(f"root is the folder that holds the dataset, not {root!r}; for batches, batch_size={root!r}")
    batch_size, validation = check_whole("batch_size", batch_size, 1), check_whole("validation", validation, 0)
    workers, seed = check_whole("workers", workers, 0), check_seed(seed)
    size = None if size is None else check_whole("size", size, 8, 10_000)
    limit = None if limit is None else check_whole("limit", limit, 1)
    source = str(source)
    placed = pick_device(device)
    if device is None and placed.type != "cuda":
        placed = torch.device("cpu")
    if test_share is not None:
        check_real("test_share", test_share, 0, 1, open_low=True)
    recipe = "none" if recipe is None else recipe
    train_transform(recipe, (0.5,), (0.5,))  # refuses an unknown recipe before anything is read

    train, test, classes = read_source(source, Path(root), size)
    described = describe_source(source, train[0]) + _describe_changes(size, test_share)
    if test_share is not None:
        train, test = split_anew(train, test, test_share, seed)
    elif not len(test[1]):
        raise ValueError(
            f"{source} holds its classes without train/ and test/; give test_share=0.2 to set a fifth of each aside "
            "for testing"
        )
    splits = [*hold_out(train, validation, seed), test]
    if limit is not None:
        splits = [pick(split, stratified(split[1], limit, seed)) for split in splits]
    _warn_of_absent_classes(splits[0][1], splits[2][1], classes)
    memory = min(memory_bytes(placed), memory_bytes(torch.device("cpu")))
    needed = uint8_bytes([images for images, _ in splits], size)
    fits = needed <= memory // 2
    if not fits and size is not None and isinstance(train[0], Tensor):
        raise ValueError(
            f"size={size} makes more of the images than half of the memory holds; make it or limit smaller"
        )
    splits = [(resize(images, size), labels) for images, labels in splits]
    fingerprints = [take_fingerprint(*split) for split in splits]  # of files, also if they fit
    if fits:
        splits = [(decode(images) if isinstance(images, ImageFiles) else images, labels) for images, labels in splits]
    _check_sides(splits[0][0][0], splits[2][0][0])
    if isinstance(splits[0][0], ImageFiles):
        warnings.warn(
            f"the images take {needed / 1e9:.2g} GB and do not fit into half of the memory, so each epoch decodes them "
            "anew, which takes long; workers=2 shares the work, a smaller size= or limit= makes them fit",
            stacklevel=2,
        )
        for images, _ in splits[1:]:  # as the training images are for the statistics: what is damaged is named now
            for _ in batches(images, workers):
                pass
    own = source == "cifar10" and test_share is None and size in (None, 32)
    known = (CIFAR10_MEAN, CIFAR10_STD) if own else None
    mean, std = known or statistics(splits[0][0], workers)

    def loader(split: Split, fingerprint: str, transform: Compose, shuffle: bool = False) -> Loader:
        return Loader(
            *split,
            transform,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            device=placed,
            workers=workers,
            fingerprint=fingerprint,
            classes=len(classes),
        )

    if not isinstance(recipe, str):  # a pipeline that does not fit is refused now, and not in the first epoch
        train_transform(recipe, mean, std)(splits[0][0][0][None].clone(), torch.Generator())
    plain = test_transform(mean, std)
    return Data(
        train=loader(splits[0], fingerprints[0], train_transform(recipe, mean, std), shuffle=True),
        validation=loader(splits[1], fingerprints[1], plain) if validation else None,
        test=loader(splits[2], fingerprints[2], plain),
        classes=classes,
        mean=mean,
        std=std,
        source=described,
        test_share=test_share,
    )


def _describe_changes(size: int | None, test_share: float | None) -> str:
    """Say what makes the images other than the dataset's own."""
    resized = f", resized to {size}x{size}" if size is not None else ""
    return resized + (f", split anew with {100 * test_share:.3g}% for testing" if test_share is not None else "")


def _warn_of_absent_classes(trained: Tensor, tested: Tensor, classes: list[str]) -> None:
    """Warn of classes of which the labels trained on, or those tested on, have none."""
    causes = {"training": "validation= or test_share= too large", "test": "test_share= too small"}
    for (name, cause), labels in zip(causes.items(), (trained, tested), strict=True):
        counts = labels.bincount(minlength=len(classes)).tolist()
        absent = [kind for kind, count in zip(classes, counts, strict=True) if not count]
        if absent:
            warnings.warn(
                f"{len(absent)} of {len(classes)} classes have no {name} image, {absent[0]!r} for one: too few are "
                f"there, limit= is too small, or {cause}",
                stacklevel=3,
            )


def _check_sides(trained: Tensor, tested: Tensor) -> None:
    """Refuse a first training and a first test image of different sizes; the others are held to the first ones."""
    (height, width), (tested_height, tested_width) = trained.shape[1:], tested.shape[1:]
    if (height, width) != (tested_height, tested_width):
        raise ValueError(
            f"the training images are {width}x{height} pixels and the test images {tested_width}x{tested_height}; "
            "give size= to resize all to one side"
        )
