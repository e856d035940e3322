"""Batches from uint8 images: in memory, or decoded as they are needed."""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .images import ImageFiles
from .transforms import Compose, Normalize


class Loader:
    """Batches of (images float32 (N, 3, H, W), labels int64 (N,)), the same for the same seed and epoch.

    The order and every random draw of the transform come from the seed and the epoch alone, whether the
    images are in memory or decoded by workers; torch's own generator is left as it was. `fit` tells the
    epoch; in a loop of your own call `set_epoch` first, or each pass repeats the last.

    Args:
        images: uint8 (N, 3, H, W), moved to the device once; or `ImageFiles`.
        labels: int64 (N,), from 0 up.
        transform: from uint8 batch and generator to float batch, see `eva_utils.utils.transforms`.
        batch_size: images in a batch; the last may be smaller.
        shuffle: whether each epoch has an order of its own.
        seed: of the order and of the transform.
        device: where the batches are made; the CPU if None.
        workers: processes that decode `ImageFiles`; 0 decodes in this one.
        fingerprint: identifies the data in the record of a run; None takes that of the images and labels.
        classes: how many there are; None goes by the highest label.

    Raises:
        ValueError: there are not as many labels as images.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Tensor,
        transform: Compose,
        *,
        batch_size: int = 128,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | None = None,
        workers: int = 0,
        fingerprint: str | None = None,
        classes: int | None = None,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"there are {len(images)} images and {len(labels)} labels; give one label an image")
        highest = int(labels.max()) if len(labels) else -1
        self.classes = highest + 1 if classes is None else classes
        self.device = torch.device("cpu") if device is None else device
        self.fingerprint = take_fingerprint(images, labels) if fingerprint is None else fingerprint
        self.images = images.to(self.device) if isinstance(images, Tensor) else images
        self.labels = labels.to(self.device)
        self.transform, self.batch_size, self.shuffle, self.seed = transform, batch_size, shuffle, seed
        self.workers, self.epoch = workers, 1
        self.part, self.parts = 0, 1

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's order and augmentation the next pass has; epochs count from 1."""
        self.epoch = epoch

    def shard(self, part: int, parts: int) -> "Loader":
        """Return the loader of one of several processes: of each batch every `parts`-th image, from the `part`-th on.

        Where the last batch has too few images, a part holds one of them and no label. Each part draws its own
        augmentation.
        """
        shard = copy.copy(self)
        shard.part, shard.parts = part, parts
        return shard

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def order(self) -> Tensor:
        """Return the positions of the images in the order of the epoch's pass, int64 (N,)."""
        if not self.shuffle:
            return torch.arange(len(self.labels))
        return torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self._seeds()[0]))

    def _seeds(self) -> tuple[int, int]:
        """Return the seeds of this epoch's order and of its draws."""
        order, draws = np.random.SeedSequence((self.seed, self.epoch)).generate_state(2).tolist()
        if self.part:
            draws = int(np.random.SeedSequence((self.seed, self.epoch, self.part)).generate_state(1)[0])
        return order, draws

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.device).manual_seed(self._seeds()[1])
        whole = self.order().to(self.labels.device).split(self.batch_size)
        own = batches = whole
        if self.parts > 1:
            own = tuple(positions[self.part :: self.parts] for positions in whole)
            batches = tuple(part if len(part) else positions[:1] for part, positions in zip(own, whole, strict=True))
        for part, images in zip(own, self._pixels(batches), strict=True):
            yield self.transform(images, generator), self.labels[part]

    def _pixels(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield each batch's uint8 images on the device."""
        if isinstance(self.images, Tensor):
            yield from (self.images[positions] for positions in batches)
            return
        decoded = DataLoader(
            self.images,
            batch_sampler=[positions.tolist() for positions in batches],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        for images in decoded:
            yield images.to(self.device, non_blocking=self.device.type == "cuda")

    def __repr__(self) -> str:
        kept = f"in memory on {self.device}" if isinstance(self.images, Tensor) else "decoded as they are needed"
        steps = ["Normalize" if isinstance(part, Normalize) else repr(part) for part in self.transform]
        return f"Loader({len(self.labels)} images {kept}, batches of {self.batch_size}, {' -> '.join(steps)})"

    def describe(self) -> dict:
        """Return what determines the batches, as plain values: the record of a run keeps it."""
        return {
            "images": len(self.labels),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "transform": repr(self.transform),
            "fingerprint": self.fingerprint,
        }


def take_fingerprint(images: Tensor | ImageFiles, labels: Tensor) -> str:
    """Hash the pixels, or of files all names and sizes and the bytes of at most 64, together with the labels."""
    digest = hashlib.sha256(labels.cpu().numpy().tobytes())
    if isinstance(images, Tensor):
        digest.update(str(tuple(images.shape)).encode())
        digest.update(images.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]
    digest.update(f"{images.size}\n".encode())
    for path in images.paths:
        digest.update(f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode())
    for path in images.paths[:: math.ceil(len(images) / 64) or 1]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
