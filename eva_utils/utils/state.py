"""The state of a run between two epochs: everything that shapes the epochs to come."""

import copy
import warnings
from typing import Any

import torch

from . import processes
from .history import History
from .runtime import pick_precision, rng_state, set_rng_state


def copy_states(parts: dict[str, Any]) -> dict[str, Any]:
    """Copy the state_dict of each part of a run, to go back to."""
    return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}


def own_generators(loader: Any) -> list[torch.Generator]:
    """Return the generators of its own that a DataLoader draws its order from."""
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    found = [getattr(part, "generator", None) for part in (loader, sampler, inner)]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())


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


def collect_state(epoch: int, parts: dict[str, Any], generators: list[torch.Generator], history: History) -> dict:
    """Return everything that shapes the epochs to come."""
    return {
        "epoch": epoch,
        "history": {"settings": history.settings, "rows": history.rows},
        "rng": processes.gather(rng_state()),
        "generators": [generator.get_state() for generator in generators],
        **{name: part.state_dict() for name, part in parts.items()},
    }


def restore_state(saved: dict, parts: dict[str, Any], generators: list[torch.Generator]) -> None:
    """Put back what `collect_state` returned."""
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    rng = saved["rng"]
    set_rng_state(rng[processes.rank()] if isinstance(rng, list) else rng)
    for generator, state in zip(generators, saved["generators"], strict=True):
        generator.set_state(state)
