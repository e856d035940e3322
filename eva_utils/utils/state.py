"""The state of a run between two epochs: everything that shapes the epochs to come."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from . import processes
from .history import History
from .parts import keeping_workers, own_generators
from .runtime import pick_precision, rng_state, set_rng_state


def recorded_precision(saved: dict, device: torch.device, epochs: int) -> torch.dtype:
    """Return the precision that a run on disk was trained in.

    Raises:
        ValueError: this device has not got it, and the run has less than `epochs` epochs.
    """
    precision = saved["history"]["settings"]["precision"]
    if precision == "float16" and device.type != "cuda":
        if saved["epoch"] >= epochs:
            return torch.float32
        raise ValueError("cannot resume: the run was trained in float16; resume it on a CUDA device, or start another")
    dtype = pick_precision(precision, device)
    if dtype == torch.bfloat16 != pick_precision("auto", device) and saved["epoch"] < epochs:
        warnings.warn(
            "the run was trained in bfloat16, which this machine has no instructions for and emulates slowly; resume "
            "it on one that has",
            stacklevel=3,
        )
    return dtype


class RunState:
    """What shapes the epochs to come: the state of a run's parts, the loaders' generators and the random ones.

    Args:
        loaders: the training and the test loader.
        parts: by name, what has a `state_dict`; those that are None are left out.
    """

    def __init__(self, loaders: Sequence[Any], **parts: Any) -> None:
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.loaders = loaders
        found = {id(generator): generator for loader in loaders for generator in own_generators(loader)}
        self.generators = list(found.values())
        self.kept: dict[str, dict] = {}

    def collect(self, history: History) -> dict:
        """Return all of it, and the record, as tensors and plain values."""
        return {
            "epoch": len(history),
            "history": {"settings": history.settings, "rows": history.rows},
            "rng": processes.gather(rng_state()),
            "generators": [generator.get_state() for generator in self.generators],
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def restore(self, saved: dict) -> None:
        """Put back what `collect` returned."""
        for name, part in self.parts.items():
            if saved[name]:  # a finished run may be loaded in float16 that was trained without, and left no scale
                part.load_state_dict(saved[name])
        for loader in keeping_workers(self.loaders):
            iter(loader)  # starts the workers, for which it draws a seed, as the run did in its first epoch
        rng = saved["rng"]
        set_rng_state(rng[processes.rank()] if isinstance(rng, list) else rng)
        for generator, state in zip(self.generators, saved["generators"], strict=True):
            generator.set_state(state)

    def keep(self) -> None:
        """Remember the parts as they are, for `roll_back`."""
        self.kept = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}

    def roll_back(self) -> None:
        """Bring the parts back to the last `keep`."""
        for name, part in self.parts.items():
            part.load_state_dict(self.kept[name])
