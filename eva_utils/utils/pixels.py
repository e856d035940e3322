"""The images of a dataset: how much memory they take, resized, decoded, their mean and standard deviation."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .images import ImageFiles


def uint8_bytes(parts: list[Tensor | ImageFiles], size: int | None) -> int:
    """Return what the images take as uint8 at this size; a folder's are taken to be as large as its first."""
    return sum(len(part) * (3 * size**2 if size else part[0].numel()) for part in parts if len(part))


def resize(images: Tensor | ImageFiles, size: int | None) -> Tensor | ImageFiles:
    """Resize uint8 images (N, 3, H, W) to a side, bilinear with antialiasing; image files do it as they are read."""
    if size is None or isinstance(images, ImageFiles) or images.shape[-2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional

    resized = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for into, part in zip(resized.split(1000), images.split(1000), strict=True):
        into.copy_(functional.resize(part, [size, size], antialias=True))
    return resized


def decode(files: ImageFiles) -> Tensor:
    """Decode all files into one uint8 tensor (N, 3, H, W)."""
    if not len(files):
        return torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    images = torch.empty(len(files), *files[0].shape, dtype=torch.uint8)
    for index in range(len(files)):
        images[index] = files[index]
    return images


def batches(images: Tensor | ImageFiles, workers: int) -> Iterable[Tensor]:
    """Return all images in their order, uint8 (n, 3, H, W) at a time."""
    if isinstance(images, Tensor):
        return images.split(1000)
    return DataLoader(images, 100, num_workers=workers, generator=torch.Generator())


def statistics(images: Tensor | ImageFiles, workers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation for pixels in [0, 1], exact from counts of the 256 levels."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for batch in batches(images, workers):
        for channel in range(3):
            counts[channel] += torch.bincount(batch[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = (share * levels).sum(dim=1)
    std = (share * (levels - mean[:, None]) ** 2).sum(dim=1).sqrt().clamp(min=1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())
