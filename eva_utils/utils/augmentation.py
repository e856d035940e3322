"""What each augmentation of a loader does to real images."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .loader import Loader
from .names import plural
from .transforms import Normalize, step_names

DRAWS = 64
OTHER_SEEDS = 8


@dataclass(frozen=True)
class Check:
    """A line of preflight's table: what was looked at, whether it passed, what was found and, if not, a likely cause.

    `passed` is None where it cannot be told, for lack of time or of what was meant, which is no failure.
    """

    name: str
    passed: bool | None
    found: str
    cause: str = ""


class _Discarded(nn.Module):
    """Runs a transform, so that it draws, and returns its input."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.transform(images.clone(), generator)
        return images


def augmentation_checks(train: Loader) -> list[Check]:
    """Check each augmentation of a loader on 64 of its images: what the model is shown must change with it.

    The whole transform runs twice from one seed, the second time with this step's result thrown away; the
    outcomes must differ. Copies of one image must not all be changed alike; where every seed changes them alike,
    that may be meant.
    """
    if isinstance(train.images, Tensor):
        images = train.images[:DRAWS].cpu()
    else:
        images = next(iter(DataLoader(train.images, DRAWS, generator=torch.Generator())))
    images = images[torch.arange(DRAWS) % len(images)]
    varied = images[images.float().flatten(1).std(dim=1).argmax()]  # an even image would not show a flip
    checks = []
    for place, part in enumerate(train.transform):
        if isinstance(part, Normalize):
            continue
        without = copy.deepcopy(train.transform).cpu()
        without[place] = _Discarded(part)
        changes = (_changed(images, train.transform, without, seed) for seed in range(1 + OTHER_SEEDS))
        changed = next(filter(None, changes), 0.0)  # what is rarely drawn may leave 64 images alone
        kinds, first = 1, set()
        for seed in range(1 + OTHER_SEEDS):
            copies = [copy.numpy().tobytes() for copy in _copies(part, varied, seed)]
            kinds = len(set(copies))
            first.add(copies[0])
            if kinds > 1:
                break
        never_draws = kinds == len(first) == 1
        checks.append(
            Check(
                f"{', '.join(step_names(part))} changes pixels",
                None if changed and never_draws else bool(changed) and kinds > 1,
                f"{100 * changed:.0f}% of {DRAWS} images changed, {plural(kinds, 'kind')} of {DRAWS} copies of one"
                + ("; the same for every image, which may be meant" if changed and never_draws else ""),
                "it draws once for the whole batch" if changed else "its result is not what is returned",
            )
        )
    return checks or [Check("augmentation changes pixels", True, "none is asked for")]


def _changed(images: Tensor, whole: nn.Module, without: nn.Module, seed: int) -> float:
    """Return the share of images that a transform makes something else of with a step than without it."""
    seen, unchanged = (way(images.clone(), torch.Generator().manual_seed(seed)) for way in (whole, without))
    return (seen != unchanged).flatten(1).any(1).float().mean().item()


def _copies(part: nn.Module, image: Tensor, seed: int) -> Tensor:
    """Return what a transform makes of copies of one image."""
    return part(image[None].expand(DRAWS, -1, -1, -1).clone(), torch.Generator().manual_seed(seed))
