"""The rule on a network's depth: how many layers with weights run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .compiling import unwrap
from .parts import copy_model
from .rules import Finding, judged

_SHORTCUTS = {"shortcut", "downsample", "skip", "identity", "projection", "residual"}
_SHORTCUT_WORDS = {"shortcut", "downsample", "skip"}  # also within a name, as shortcut_conv


class _UsedTensors(TorchDispatchMode):
    """Collects the places in memory of the tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = (part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor))
        self.used |= {part.untyped_storage().data_ptr() for part in read}
        return func(*args, **(kwargs or {}))


def depth(required: int, model: nn.Module, images: Tensor) -> Finding:
    """Count convolutions and linear layers whose weights are used, without the 1x1 convolutions of shortcuts."""
    trial = copy_model(unwrap(model)).eval()
    with torch.no_grad(), _UsedTensors() as read:
        trial(images[:1].to(next(trial.parameters()).device))
    count = idle = 0
    for name, module in trial.named_modules():
        pointwise = isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1
        if not isinstance(module, nn.Conv2d | nn.Linear) or (pointwise and _is_in_shortcut(name, trial)):
            continue
        runs = any(parameter.untyped_storage().data_ptr() in read.used for parameter in module.parameters())
        count, idle = count + runs, idle + (not runs)
    found = f"{count} in {type(trial).__name__}{f'; {idle} more never run' if idle else ''}"
    return judged("convolutions and linear layers", f"{required}, shortcuts apart", found, count == required)


def _is_in_shortcut(name: str, model: nn.Module) -> bool:
    """Whether a convolution is in a part that is called a shortcut, and is the only one there."""
    modules, parts = dict(model.named_modules()), name.split(".")
    for end, part in enumerate(parts, start=1):
        if part in _SHORTCUTS or _SHORTCUT_WORDS & set(part.split("_")):
            if isinstance(modules[".".join(parts[:end])], nn.ModuleList):  # of several shortcuts
                end += 1
            held = modules[".".join(parts[:end])].modules()
            if sum(isinstance(module, nn.Conv2d) for module in held) == 1:
                return True
    return False
