"""A pipeline that works on one image at a time, albumentations' or torchvision's, over a batch."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .kept import keep_rng
from .runtime import seed_everything


class PerImage(nn.Module):
    """Apply a pipeline of the student's own to each image of a uint8 batch, on the CPU.

    It draws anew for each image, from the generator alone: python, numpy, torch and the pipeline are seeded
    for the batch, and python, numpy and torch put back after it. Much slower than `eva_utils.utils.transforms`.

    Args:
        pipeline: of albumentations, called as pipeline(image=uint8 (H, W, 3)), or a `torchvision.transforms.v2`
            module, called with uint8 (3, H, W). It may neither normalize, which follows, nor change the size.

    Raises:
        TypeError: the pipeline is neither.
        ValueError: (when used) it returns something other than uint8 images of the size they had.
    """

    def __init__(self, pipeline: Callable[..., Any]) -> None:
        super().__init__()
        packages = {kind.__module__.split(".")[0] for kind in type(pipeline).__mro__}
        if isinstance(pipeline, type) or (not isinstance(pipeline, nn.Module) and "albumentations" not in packages):
            advice = ""
            if isinstance(pipeline, list | tuple):
                advice = "; put the parts into one, as v2.Compose([...])"
            elif type(pipeline).__module__ == "torchvision.transforms.transforms":
                advice = "; import torchvision.transforms.v2, which has the same names"
            raise TypeError(
                "a recipe is a name, an albumentations.Compose or a module of torchvision.transforms.v2, not "
                f"{type(pipeline).__module__}.{type(pipeline).__name__}{advice}"
            )
        self.pipeline = pipeline
        # Now, since one that cannot be would end a run later; an address would be another in each process.
        self.described = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(pipeline).split()))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else torch.device("cpu")
        seed = int(torch.randint(2**31, (), generator=generator, device=device))
        with keep_rng():
            seed_everything(seed)
            if hasattr(self.pipeline, "set_random_seed"):  # albumentations 2 draws from a generator of its own
                self.pipeline.set_random_seed(seed)
            return torch.stack([self._change(image) for image in images.cpu()]).to(images.device)

    def _change(self, image: Tensor) -> Tensor:
        try:
            if isinstance(self.pipeline, nn.Module):
                changed = self.pipeline(image)
            else:
                changed = self.pipeline(image=image.permute(1, 2, 0).contiguous().numpy())["image"]
        except Exception as error:
            raise ValueError(
                f"the pipeline failed on a uint8 image of {tuple(image.shape)} ({error}); it gets pixels from 0 to 255 "
                "and may not normalize them"
            ) from error
        if isinstance(changed, np.ndarray):
            changed = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.atleast_3d(changed), 2, 0)))
        if not isinstance(changed, Tensor) or changed.dtype != torch.uint8:
            found = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(
                f"the pipeline returned {found} for a uint8 image; leave its normalization and its conversion to a "
                "tensor out, load_data does both"
            )
        if changed.ndim != 3 or changed.shape[0] != image.shape[0]:
            raise ValueError(f"the pipeline made {tuple(changed.shape)} of {tuple(image.shape)}; keep three channels")
        if changed.shape != image.shape:
            raise ValueError(
                f"the pipeline made {tuple(changed.shape)} of an image of {tuple(image.shape)}, and the test images "
                "stay as they are; resize all of them with load_data(size=)"
            )
        return changed

    @property
    def names(self) -> list[str]:
        """The names of the pipeline's steps."""
        return [type(step).__name__ for step in getattr(self.pipeline, "transforms", [self.pipeline])]

    def __repr__(self) -> str:
        return f"PerImage({self.described})"
