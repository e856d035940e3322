"""The rule on normalization: which kinds are in a model, and which run in it."""

import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .compiling import unwrap
from .kept import keep_rng
from .parts import NORMS, copy_model, drop_parametrizations, has_one_group, norm_kinds
from .rules import UNCHECKED, Finding, judged
from .runtime import seed_everything

_ALLOWED = {
    "LayerNorm": {"layer_norm", "group_norm of one group"},
    "GroupNorm": {"group_norm", "group_norm of one group"},
    "BatchNorm": {"batch_norm"},
}
NORMALIZATIONS = tuple(_ALLOWED)
_BY_HAND = {"var": "variance", "std": "standard deviation", "linalg_vector_norm": "length"}


class _NormCalls(TorchDispatchMode):
    """Counts the normalizations that run, in modules or not, by kind and whether they are of the model's weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        made = (parameter for parameter in model.parameters() if not nn.parameter.is_lazy(parameter))
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in made}
        self.calls: Counter[tuple[str, bool]] = Counter()

    def count(self, kind: str, normalized: Tensor) -> None:
        self.calls[kind, normalized.untyped_storage().data_ptr() in self.weights] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = re.search(r"(batch|group|layer)_norm|^(var|std|linalg_vector_norm)(?=[._])", func.__name__)
        if found and "backward" not in func.__name__:
            kind = _BY_HAND.get(found[0], found[0])
            # native_group_norm(input, weight, bias, N, C, HxW, group, eps)
            if kind == "group_norm" and len(args) > 6 and args[6] == 1:
                kind = "group_norm of one group"
            if kind == "batch_norm" and len(args[0]) == 1:  # of one image, to which torch gives the channels of both
                kind = "instance_norm"
            self.count(kind, args[0])
        return func(*args, **(kwargs or {}))


class _DecomposedCalls(TorchFunctionMode):
    """Adds to the counts those normalizations that torch takes apart before they run."""

    def __init__(self, counted: _NormCalls) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("rms_norm", "local_response_norm"):
            self.counted.count(func.__name__, args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))


def normalization(required: str, model: nn.Module, images: Tensor) -> Finding:
    """Look at every normalization module, and at every normalization that runs in training and in evaluation.

    One may be written by hand. Of batches it is found out, since an image's logits then depend on its batch; of others
    only that a variance, a deviation or a length is computed is seen, and what becomes of it is left to the reader.
    """
    allowed, trial = _ALLOWED[required], copy_model(unwrap(model))
    drop_parametrizations(trial)  # what they compute is of weights
    image = images[:1].to(next(trial.parameters()).device)
    images = image.expand(2, *image.shape[1:])  # batch norm needs two
    calls: Counter[tuple[str, bool]] = Counter()
    for training in (True, False):
        with torch.no_grad(), _NormCalls(trial) as counted, _DecomposedCalls(counted):
            trial.train(training)(images)
        calls |= counted.calls
    norms = [(name, module) for name, module in trial.named_modules() if isinstance(module, NORMS)]
    others = [name for name, module in norms if not _is_norm(required, module)]
    ran = [f"{count} {kind}{' of weights' if of_weights else ''}" for (kind, of_weights), count in calls.items()]
    found = ", ".join(f"{count} {kind}" for kind, count in norm_kinds(trial).items()) or "no normalization module"
    found += f" (a forward pass: {', '.join(ran) or 'no normalization runs'})"
    if others:
        found += f"; not {required}: {', '.join(others[:4])}{' …' if len(others) > 4 else ''}"
    of_activations = {kind for kind, of_weights in calls if not of_weights}  # standardized weights are allowed
    by_hand = of_activations.intersection(_BY_HAND.values())
    passed = not others and bool(of_activations) and of_activations - by_hand <= allowed
    if passed and "batch_norm" not in allowed and _depends_on_batch(trial, image):
        passed = False
        found += "; in training an image's logits depend on the others of its batch"
    rule, asked = "normalization", f"{required} only, shortcuts included"
    if passed and by_hand:
        return Finding(rule, asked, f"{found}; whether what is computed by hand normalizes is not known", UNCHECKED)
    return judged(rule, asked, found, passed)


def _depends_on_batch(model: nn.Module, image: Tensor) -> bool:
    """Whether in training, dropout apart, the logits of an image (1, C, H, W) change with the other of its batch."""
    logits = []
    with keep_rng(), torch.no_grad():
        seed_everything(0)
        for other in (image, 1 + image.std() * torch.randn_like(image)):
            trial = copy_model(model).train()
            for module in trial.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.eval()
            seed_everything(0)  # what else is drawn, as which blocks are left out, is drawn again
            logits.append(trial(torch.cat([image, other]))[0])
    return bool((logits[0] - logits[1]).abs().max() > 1e-3 * logits[0].abs().max())


def _is_norm(required: str, module: nn.Module) -> bool:
    if required == "LayerNorm":
        return isinstance(module, nn.LayerNorm) or has_one_group(module)
    kind = nn.GroupNorm if required == "GroupNorm" else nn.modules.batchnorm._BatchNorm
    return isinstance(module, kind)
