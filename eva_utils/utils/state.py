"""The state of a run between two epochs: everything that shapes the epochs to come."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import processes
from .checkpoint import load_into, weights_differ
from .history import HOW, History, describe_criterion, describe_layers
from .parts import keeping_workers, own_generators
from .runtime import pick_precision, rng_state, set_rng_state

# Options of an optimizer that a schedule changes as it runs.
_SCHEDULED = {"lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "base_momentum", "max_momentum"}
_BEFORE_IT_WAS_RECORDED = {"warmup": 0, "compile": False, "processes": 1}


class OtherRunError(ValueError):
    """A run on disk that is another than the one to be resumed."""


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


def _computed_as(state: dict, optimizer: Optimizer) -> dict:
    """Return an optimizer's state with the options that only say how a step is computed as this optimizer has them."""
    own = [{name: group[name] for name in HOW & group.keys()} for group in optimizer.param_groups]
    return {**state, "param_groups": [{**then, **now} for then, now in zip(state["param_groups"], own, strict=True)]}


class _LooseBuffers:
    """The buffers of a run's modules that are in no state_dict, as running values that a model keeps to itself."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = nn.ModuleDict(modules)

    def state_dict(self) -> dict[str, Tensor]:
        kept = self.modules.state_dict()
        return {name: buffer for name, buffer in self.modules.named_buffers() if name not in kept}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        for name, buffer in self.state_dict().items():
            if name in saved:  # not written in place, since a cache may have grown
                buffer.data = saved[name].to(buffer.device, copy=True)


class RunState:
    """What shapes the epochs to come: the state of a run's parts, the loaders' generators and the random ones.

    Args:
        loaders: the training and the test loader.
        criterion: the loss, a part as well if it has a state.
        parts: by name, what has a `state_dict`; those that are None are left out.
    """

    def __init__(self, loaders: Sequence[Any], criterion: Any = None, **parts: Any) -> None:
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.loaders, self.criterion = loaders, criterion
        self.layers = describe_layers(self.parts["model"])
        if isinstance(criterion, nn.Module) and criterion.state_dict():
            self.parts["criterion"] = criterion
        modules = {**self.parts, "criterion": criterion}
        self.parts["buffers"] = _LooseBuffers(
            {name: part for name, part in modules.items() if isinstance(part, nn.Module)}
        )
        self.generators = own_generators(*loaders)
        self.kept: dict[str, dict] = {}

    def collect(self, history: History) -> dict:
        """Return all of it, and the record, as tensors and plain values."""
        return {
            "epoch": len(history),
            "history": {"settings": history.settings, "rows": history.rows},
            "rng": processes.gather(rng_state()),
            "generators": [generator.get_state() for generator in self.generators],
            "criterion_left": describe_criterion(self.criterion),
            "layers": self.layers,
            "layers_left": describe_layers(self.parts["model"]),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def restore(self, saved: dict) -> None:
        """Put back what `collect` returned."""
        if saved["history"]["settings"]["precision"] != "float32":
            saved = {**saved, "optimizer": _computed_as(saved["optimizer"], self.parts["optimizer"])}
        for name, part in self.parts.items():
            # A finished run may be loaded in float16 that was trained without, and left no scale.
            if saved.get(name):
                load_into(part, saved[name]) if isinstance(part, nn.Module) else part.load_state_dict(saved[name])
        for loader in keeping_workers(self.loaders):
            iter(loader)  # starts the workers, for which it draws a seed, as the run did in its first epoch
        rng = saved["rng"] if isinstance(saved["rng"], list) else [saved["rng"]]
        if processes.rank() < len(rng):  # a finished run may be loaded by more processes than trained it
            set_rng_state(rng[processes.rank()])
        for generator, state in zip(self.generators, saved["generators"], strict=True):
            generator.set_state(state)

    def keep(self) -> None:
        """Remember the parts as they are, for `roll_back`."""
        self.kept = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}

    def roll_back(self) -> None:
        """Bring the parts back to the last `keep`."""
        for name, part in self.parts.items():
            part.load_state_dict(self.kept[name])


def check_resumable(saved: dict, state: RunState, settings: dict) -> None:
    """Refuse to resume what does not fit: another model, optimizer, schedule, data or batch count.

    Precision, `compile` and processes may be others if no epoch is left to train. Of an optimizer that has made steps,
    or stands as the run left it, the options that a schedule changes are not compared; of a loss what ran on with it.

    Args:
        saved: the state of the run on disk.
        state: that of the run given now.
        settings: the settings of the run as they would be now.

    Raises:
        OtherRunError: they differ; the first difference is named.
    """
    optimizer: Optimizer = state.parts["optimizer"]
    problem = weights_differ(saved["model"], state.parts["model"])
    if problem:
        raise OtherRunError(f"cannot resume: the model is another one: {problem}; build the one that was trained")
    trained = saved.get("layers", state.layers)  # an earlier version did not save them
    difference = _difference("model", trained, state.layers, saved.get("layers_left", trained), set())
    if difference:
        raise OtherRunError(f"cannot resume: {difference}; build the one that was trained, or choose another folder")
    before = saved["history"]["settings"]
    was, now = (said["scheduler"]["class"] for said in (before, settings))
    if was != now:  # first, since a schedule changes the optimizer's options
        raise OtherRunError(
            f"cannot resume: scheduler class was {was!r} and is now {now!r}; pass the scheduler as it was, or choose "
            "another folder"
        )
    groups = zip(optimizer.param_groups, saved["optimizer"]["param_groups"], strict=False)
    as_left = all(_is_same(now[name], then.get(name)) for now, then in groups for name in _SCHEDULED & now.keys())
    skip = _SCHEDULED if optimizer.state or as_left else set()
    compared = ("train_loader", "test_loader", "batches", "optimizer", "scheduler", "warmup", "ema", "clip")
    trains = ("precision", "compile", "processes") if saved["epoch"] < settings["epochs"] else ()
    for name in (*compared, "criterion", *trains):
        was = before.get(name, _BEFORE_IT_WAS_RECORDED.get(name))
        left = saved.get("criterion_left", was) if name == "criterion" else was
        difference = _difference(name, was, settings[name], left, skip)
        if difference:
            advice = "make it as it was, or choose another folder"
            if difference.startswith(("scheduler total_steps", "scheduler T_max")):
                advice += "; a schedule that was built for so many epochs cannot be made longer"
            raise OtherRunError(f"cannot resume: {difference}; {advice}")
    missing = [name for name in (*state.parts, "generators", "rng") if name not in saved and name != "buffers"]
    if missing:
        raise OtherRunError(
            f"cannot resume: the run was saved without the state of its {missing[0]}, as an earlier version did; "
            "choose another folder to start anew"
        )
    drew, draw = len(saved["generators"]), len(state.generators)
    if drew != draw:
        raise OtherRunError(
            f"cannot resume: the loaders had {drew} generators between them and now have {draw}; make them as they "
            "were, or choose another folder"
        )


def _is_same(now: Any, then: Any) -> bool:
    """Whether an option of an optimizer is what it was; numbers, tensors of one, or pairs of numbers."""
    return bool(now == then) if not isinstance(now, tuple | list) else list(now) == list(then or ())


def _difference(name: str, before: object, now: object, left: object, skip: set[str]) -> str | None:
    """Say where two settings differ, by their path, or None; what the run left otherwise than it began is no option."""
    if isinstance(before, dict) and isinstance(now, dict):
        # Options come and go, with torch's versions and with this package's; parameters, schedules and layers do not.
        skip = skip | {key for key in before.keys() ^ now.keys() if not key.startswith(("group ", "part ", "layer "))}
        keys = [key for key in before | now if key not in skip]
        left = {**before, **(left if isinstance(left, dict) else {})}
        found = (_difference(f"{name} {key}", before.get(key), now.get(key), left.get(key), skip) for key in keys)
        return next((difference for difference in found if difference), None)
    if before == now or before != left:
        return None
    if name.endswith(" fingerprint"):
        return f"the images or labels of the {name.removesuffix(' fingerprint')} are not those the run began with"
    return f"{name} was {before!r} and is now {now!r}"
