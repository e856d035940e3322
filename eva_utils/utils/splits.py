"""Splits of a dataset: a part held out or kept, each class in its share, chosen by a seed."""

import torch
from torch import Tensor

from .images import ImageFiles
from .sources import Split


def split_anew(train: Split, test: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Put two splits together and return the rest and a share of the whole."""
    labels = torch.cat([train[1], test[1]])
    if isinstance(train[0], ImageFiles) and isinstance(test[0], ImageFiles):
        images: Tensor | ImageFiles = ImageFiles(train[0].paths + test[0].paths, train[0].size)
    else:
        images = torch.cat([train[0], test[0]])  # type: ignore[list-item]
    count = max(1, min(round(share * len(labels)), len(labels) - 1))
    return _divide((images, labels), stratified(labels, count, seed))


def hold_out(train: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Return the training images without so many of them, and these.

    Raises:
        ValueError: that would be all of them.
    """
    if count >= len(train[1]):
        raise ValueError(
            f"validation={count} would hold out all of the {len(train[1])} training images; hold out fewer"
        )
    return _divide(train, stratified(train[1], count, seed))


def _divide(split: Split, positions: Tensor) -> tuple[Split, Split]:
    """Return the split without the images at these positions, and these."""
    others = torch.ones(len(split[1]), dtype=torch.bool)
    others[positions] = False
    return pick(split, others.nonzero().flatten()), pick(split, positions)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` positions of labels int64 (N,), each class in its share, by the seed; ascending."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place.argsort(stable=True)[:count].sort().values


def pick(split: Split, positions: Tensor) -> Split:
    """Return the images and labels at these positions."""
    images, labels = split
    if len(positions) == len(labels):
        return split
    return images.pick(positions) if isinstance(images, ImageFiles) else images[positions], labels[positions]
