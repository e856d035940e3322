"""Augmentation of whole batches, and the assignments' recipes.

Each transform is a pure function of drawn parameters and a module that draws them. Both take one image
(C, H, W) or a batch (N, C, H, W), uint8 or floating point, on any device; a batch draws anew for each
image. The modules draw from `generator`, or from torch's own generator of the tensor's device, and fit
into a `torchvision.transforms.v2.Compose` after `ToImage`.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_whole, is_real
from .cutout import Cutout
from .names import unknown_name
from .per_image import PerImage


def _as_batch(images: Tensor) -> Tensor:
    """View one image as a batch of one, and any tensor subclass as a plain tensor."""
    if images.ndim not in (3, 4):
        raise ValueError(f"expected one image (C, H, W) or a batch (N, C, H, W), got shape {tuple(images.shape)}")
    images = images.as_subclass(Tensor)
    return images if images.ndim == 4 else images[None]


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int = 4) -> Tensor:
    """Pad every side with black and cut a window of the image's own size out of each.

    Args:
        images: (N, C, H, W) or (C, H, W).
        top, left: int64 (N,), or () for one image, from 0 to 2 * padding: the window's corner in the padded image.
        padding: pixels added on every side.

    Raises:
        ValueError: the images have another number of axes.
    """
    batch = _as_batch(images)
    height, width = batch.shape[-2:]
    windows = F.pad(batch, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    numbers = torch.arange(len(batch), device=batch.device)
    return windows[numbers, :, top.reshape(-1), left.reshape(-1)].reshape(images.shape)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre, bilinear, positive counter-clockwise; what comes in from outside is black.

    Agrees with `torchvision.transforms.v2.functional.rotate` (bilinear); uint8 is rounded to the nearest level.

    Args:
        images: (N, C, H, W) or (C, H, W).
        degrees: floating point (N,), or () for one image.

    Raises:
        ValueError: the images have another number of axes.
    """
    batch = _as_batch(images)
    height, width = batch.shape[-2:]
    angle = degrees.reshape(-1).to(torch.float32) * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Maps an output position to the input's; positions run from -1 to 1, so a turn must undo the aspect.
    matrix = torch.stack([cos, -sin * (height / width), zero, sin * (width / height), cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(batch.shape), align_corners=False)
    if batch.is_floating_point():
        return F.grid_sample(batch, grid.to(batch.dtype), align_corners=False).reshape(images.shape)
    turned = F.grid_sample(batch.to(torch.float32), grid, align_corners=False)
    return turned.round_().to(batch.dtype).reshape(images.shape)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right where `mirrored`, a bool (N,) or (), is true."""
    return torch.where(mirrored[..., None, None, None], images.flip(-1), images)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images - mean) / std for each channel; uint8 images are first divided by 255 and become float32.

    Args:
        images: (N, C, H, W) or (C, H, W), uint8 from 0 to 255 or floating point from 0 to 1.
        mean, std: one number for each channel, of pixels from 0 to 1.

    Raises:
        ValueError: images of another dtype, or not one number for each channel.
    """
    if images.dtype == torch.uint8:
        images = images.to(torch.float32) / 255
    images = images.as_subclass(Tensor)
    return (images - _per_channel(mean, images)) / _per_channel(std, images)


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `normalize`: images (N, C, H, W) or (C, H, W) back in [0, 1], for a figure.

    Raises:
        ValueError: images of whole numbers, or mean or std has not one number for each channel.
    """
    return unclamped_pixels(images, mean, std).clamp(0, 1)


def unclamped_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `normalize` as `denormalize` does; by another mean or std than the images' own values leave [0, 1]."""
    return images * _per_channel(std, images) + _per_channel(mean, images)


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise ValueError(f"images are floating point, or uint8 from 0 to 255 to be normalized, not {images.dtype}")
    if len(values) != images.shape[-3]:
        raise ValueError(f"got {len(values)} values for images of {images.shape[-3]} channels; give one a channel")
    return _column(tuple(values), images.dtype, images.device)


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor (C, 1, 1), made once: to copy it to a device for each batch would wait for the device."""
    with torch.inference_mode(False):  # or the one that is kept could never take part in a gradient
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def step_names(step: nn.Module) -> list[str]:
    """Return the name of a step of a transform, or the names of those it has inside."""
    return getattr(step, "names", [type(step).__name__])


class RandomCrop(nn.Module):
    """Pad with black and cut out a window of the image's own size at a random place: `RandomCrop(32, padding=4)`.

    Args:
        size: side of the window; None, the default, is the image's own. No other size is possible.
        padding: pixels added on every side.

    Raises:
        ValueError: a number is out of range; (when called) the images are of another size than the window.
    """

    def __init__(self, size: int | None = None, padding: int = 4) -> None:
        super().__init__()
        self.size = None if size is None else check_whole("size", size, 1)
        self.padding = check_whole("padding", padding, 0)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.size is not None and tuple(images.shape[-2:]) != (self.size, self.size):
            raise ValueError(
                f"RandomCrop({self.size}) keeps the size of {self.size}x{self.size} images, "
                f"got {images.shape[-2]}x{images.shape[-1]}; resize them first or leave the size out"
            )
        count = images.shape[:-3]
        top = torch.randint(2 * self.padding + 1, count, generator=generator, device=images.device)
        left = torch.randint(2 * self.padding + 1, count, generator=generator, device=images.device)
        return crop(images, top, left, self.padding)

    def extra_repr(self) -> str:
        return f"padding={self.padding}"


class RandomRotate(nn.Module):
    """Rotate by an angle drawn evenly from -degrees to +degrees.

    Raises:
        ValueError: `degrees` is no number from 0 to 180.
    """

    def __init__(self, degrees: float = 5.0) -> None:
        super().__init__()
        if not is_real(degrees) or not 0 <= degrees <= 180:
            raise ValueError(f"degrees is the largest turn, from 0 to 180, not {degrees!r}")
        self.degrees: float = float(degrees)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.rand(images.shape[:-3], generator=generator, device=images.device)
        return rotate(images, (2 * drawn - 1) * self.degrees)

    def extra_repr(self) -> str:
        return f"{self.degrees:g}"


class RandomHorizontalFlip(nn.Module):
    """Mirror left and right with probability `p`.

    Raises:
        ValueError: `p` is no number from 0 to 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not is_real(p) or not 0 <= p <= 1:
            raise ValueError(f"p is a probability from 0 to 1, not {p!r}")
        self.p: float = float(p)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return flip(images, torch.rand(images.shape[:-3], generator=generator, device=images.device) < self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation of each channel; uint8 is first scaled to [0, 1].

    Raises:
        ValueError: a standard deviation is not above 0; (when called) those of `normalize`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not all(float(value) > 0 for value in std):
            raise ValueError(f"every standard deviation must be above 0, got {tuple(std)}")
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return normalize(images, self.mean, self.std)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


class Compose(nn.Sequential):
    """Transforms one after another, all drawing from the same generator."""

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        for transform in self:
            images = transform(images, generator)
        return images

    def __repr__(self) -> str:
        return " -> ".join(map(repr, self))


_RECIPES: dict[str, tuple[tuple[Callable[[], nn.Module], ...], ...]] = {
    "none": ((), ()),
    "eva6_s8": ((RandomCrop, RandomRotate), (Cutout,)),
    "eva8_s7": ((RandomCrop,), (Cutout,)),
    "eva6_s9": ((RandomCrop, RandomHorizontalFlip), (partial(Cutout, 8),)),
    "eva8_s10": ((RandomCrop, RandomHorizontalFlip), ()),
    "speedrun": ((RandomCrop, RandomHorizontalFlip), (partial(Cutout, 12),)),
}
RECIPES = tuple(_RECIPES)


def train_transform(recipe: str | Callable[..., Any], mean: Sequence[float], std: Sequence[float]) -> Compose:
    """Return what a recipe does to the training images, in this order: crop, rotate, flip, normalize, cut out.

    "eva6_s8" is RandomCrop(padding=4), RandomRotate(5) and Cutout(16); "eva8_s7" is RandomCrop(padding=4)
    and Cutout(16); "eva6_s9" is RandomCrop(padding=4), RandomHorizontalFlip() and Cutout(8); "eva8_s10" is
    RandomCrop(padding=4) and RandomHorizontalFlip(), "speedrun" these and Cutout(12); "none" only normalizes.
    Cutout follows Normalize, so that its 0 is the mean colour.

    Args:
        recipe: one of the names above, or a pipeline of your own, see `eva_utils.utils.per_image.PerImage`.
        mean, std: of each channel, for pixels in [0, 1].

    Raises:
        ValueError: the recipe is unknown; the nearest known one is named.
        TypeError: the recipe is neither a name nor a pipeline.
    """
    if not isinstance(recipe, str):
        return Compose(PerImage(recipe), Normalize(mean, std))
    if recipe not in _RECIPES:
        raise unknown_name("recipe", recipe, _RECIPES)
    before, after = _RECIPES[recipe]
    return Compose(*(make() for make in before), Normalize(mean, std), *(make() for make in after))


def test_transform(mean: Sequence[float], std: Sequence[float]) -> Compose:
    """Return what is done to test images: they are normalized, nothing else."""
    return train_transform("none", mean, std)
