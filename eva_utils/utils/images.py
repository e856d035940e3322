"""Image files as uint8 tensors, read as a viewer would show them or refused by name."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

MOST_PIXELS = 100_000_000
LEAST_SIDE = 8


class ImageFiles(Dataset):
    """Image files as uint8 tensors (3, H, W), decoded when asked for.

    Grey and palette images become three channels, transparent parts white, 16 bits a channel become 8,
    and a photograph is turned as its EXIF orientation says.

    Args:
        paths: the files.
        size: side to resize to; None leaves the images as they are, and then all must be of one size.

    Raises:
        ValueError: (on reading) a file is damaged, animated, larger than 100 million pixels, of a kind
            that has no colours to show, smaller than 8x8, or of another size than the first.
        OSError: (on reading) a file is gone, or may not be read.
    """

    def __init__(self, paths: Sequence[Path], size: int | None = None) -> None:
        self.paths, self.size = list(paths), size
        self.first_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        pixels = read_image(path, self.size)
        height, width = pixels.shape[:2]
        if self.first_size is None:
            self.first_size = (width, height) if index == 0 else read_image(self.paths[0], self.size).shape[1::-1]
        if (width, height) != self.first_size:
            raise ValueError(
                f"{path} is {width}x{height} pixels and {self.paths[0]} is {self.first_size[0]}x{self.first_size[1]}; "
                "give size= to resize all to one side"
            )
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def pick(self, positions: Tensor) -> "ImageFiles":
        """Return the files at these positions."""
        return ImageFiles([self.paths[position] for position in positions.tolist()], self.size)


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Return an image's pixels as uint8 (H, W, 3); see `ImageFiles`, whose errors it raises."""
    from PIL import Image

    shown = _decode(path)
    if size is not None and shown.size != (size, size):
        shown = shown.resize((size, size), Image.Resampling.BILINEAR)
    if min(shown.size) < LEAST_SIDE:
        raise ValueError(
            f"{path} is {shown.size[0]}x{shown.size[1]} pixels and the models take {LEAST_SIDE}x{LEAST_SIDE} or more; "
            "give size= to enlarge all"
        )
    return np.asarray(shown)


def _decode(path: Path):
    """Return the image as RGB; whatever the decoder makes of damaged bytes becomes one sentence."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are refused here
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    refusal = (
                        f"{path} claims {width}x{height} pixels, more than an image here may have; resize or remove it"
                    )
                elif getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a JPEG with its preview
                    refusal = f"{path} is animated ({image.n_frames} frames); save the frame you mean as an image"
                elif image.mode in ("I", "F"):
                    refusal = f"{path} has {image.mode!r} pixels of 32 bits, without set colours; save it with 8 bits"
                else:
                    return _as_rgb(ImageOps.exif_transpose(image))
    except (FileNotFoundError, PermissionError):
        raise
    except Image.DecompressionBombError:
        refusal = f"{path} claims more pixels than an image here may have; resize or remove it"
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image; restore or remove it") from error
    raise ValueError(refusal)


def _as_rgb(image):
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
