"""A pipeline that works on one image at a time, albumentations' or torchvision's, over a batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .runtime import keep_rng, seed_everything


class PerImage(nn.Module):
    """Apply a pipeline of the student's own to each image of a uint8 batch, on the CPU.

    It draws anew for each image, from the generator alone: python, numpy, torch and the pipeline are seeded
    for the batch, and python, numpy and torch put back after it. Much slower than `eva_utils.utils.transforms`.

    Args:
        pipeline: `albumentations.Compose`, called as pipeline(image=uint8 (H, W, 3)), or a
            `torchvision.transforms.v2` module, called with uint8 (3, H, W). It may not normalize: that follows.

    Raises:
        TypeError: the pipeline is neither.
        ValueError: (when used) it returns something other than uint8 images, or images of several sizes.
    """

    def __init__(self, pipeline: Callable[..., Any]) -> None:
        super().__init__()
        if isinstance(pipeline, type) or not callable(pipeline):
            raise TypeError(
                f"a recipe is a name, an albumentations.Compose or a torchvision.transforms.v2 module, not {pipeline!r}"
            )
        self.pipeline = pipeline

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else torch.device("cpu")
        seed = int(torch.randint(2**31, (), generator=generator, device=device))
        with keep_rng():
            seed_everything(seed)
            if hasattr(self.pipeline, "set_random_seed"):  # albumentations 2 draws from a generator of its own
                self.pipeline.set_random_seed(seed)
            changed = [self._change(image) for image in images.cpu()]
        shapes = {tuple(image.shape) for image in changed}
        if len(shapes) > 1:
            raise ValueError(f"the pipeline returned images of several sizes, {sorted(shapes)}; let it return one")
        return torch.stack(changed).to(images.device)

    def _change(self, image: Tensor) -> Tensor:
        if isinstance(self.pipeline, nn.Module):
            changed = self.pipeline(image)
        else:
            changed = self.pipeline(image=image.permute(1, 2, 0).contiguous().numpy())["image"]
            if isinstance(changed, np.ndarray):
                changed = torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1)))
        if not isinstance(changed, Tensor) or changed.dtype != torch.uint8 or changed.ndim != 3:
            found = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(
                f"the pipeline returned {found} for a uint8 image; leave its normalization and its conversion to a "
                "tensor out, load_data does both"
            )
        return changed

    def __repr__(self) -> str:
        return f"PerImage({' '.join(repr(self.pipeline).split())})"
