"""Cutout (DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552)."""

import torch
from torch import Tensor, nn

from .checks import check_whole


def cutout(images: Tensor, y: Tensor, x: Tensor, size: int = 16, fill: float = 0.0) -> Tensor:
    """Return the images with a square filled, the part of it that lies inside the image.

    Args:
        images: (N, C, H, W), or one image (C, H, W); any dtype.
        y, x: int64, (N,) or for one image (): the pixel the square is centred on; the square covers the
            rows y - size // 2 to y - size // 2 + size - 1, and the columns likewise.
        size: side of the square in pixels.
        fill: the value written; on normalized images 0 is the mean colour.
    """
    rows = torch.arange(images.shape[-2], device=images.device) - y[..., None] + size // 2
    columns = torch.arange(images.shape[-1], device=images.device) - x[..., None] + size // 2
    inside_rows, inside_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    hole = inside_rows[..., :, None] & inside_columns[..., None, :]
    return images.masked_fill(hole.unsqueeze(-3), fill)


class Cutout(nn.Module):
    """Fill one square of each image, centred on a pixel drawn evenly from the whole image.

    Near the border part of the square falls outside, as in the paper. Takes (N, C, H, W), a square for
    each image, or one image (C, H, W); draws from `generator`, or from torch's own.

    Args:
        size: side of the square in pixels; `Cutout(16)` is the assignments' CutOut(16x16).
        fill: the value written.

    Raises:
        ValueError: the size is not a positive whole number.
    """

    def __init__(self, size: int = 16, fill: float = 0.0) -> None:
        super().__init__()
        self.size: int = check_whole("Cutout's size, its side in pixels,", size, 1)
        self.fill: float = fill

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count, (height, width) = images.shape[:-3], images.shape[-2:]
        y = torch.randint(height, count, generator=generator, device=images.device)
        x = torch.randint(width, count, generator=generator, device=images.device)
        return cutout(images, y, x, self.size, self.fill)

    def extra_repr(self) -> str:
        return f"{self.size}, fill={self.fill:g}"
