"""What is asked of the parts of a run: its model, loss, loaders and scheduler; and how loaders are left alone."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.RMSNorm,
)  # fmt: skip
PER_BATCH_SCHEDULERS = (OneCycleLR, CyclicLR)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def held_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that an optimizer has, of all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def parameters_left_out(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that an optimizer does not have, by name."""
    held = {id(parameter) for parameter in held_parameters(optimizer)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in held}


def layers_of(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those of the names that are a layer's of the model."""
    known = dict(model.named_modules())
    return [name for name in names if name in known]


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy; of a tensor that a forward pass has left in an attribute it holds the values alone.

    Such a tensor may lead to a graph, which torch refuses to copy. A view of a parameter is refused still, since
    the copy's would not follow the copy's parameter.
    """
    tensors = [part for part in tree_leaves([vars(module) for module in model.modules()]) if isinstance(part, Tensor)]
    left = [part for part in tensors if not part.is_leaf and not isinstance(part._base, nn.Parameter)]
    return copy.deepcopy(model, {id(part): part.detach().clone() for part in left})


def drop_parametrizations(model: nn.Module) -> None:
    """Give a copied model its parametrized weights as plain ones.

    Torch's own way would take them from the classes, which the copy shares with the model.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            held: Any = module.parametrizations
            weights = {name: getattr(module, name) for name in held}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight.detach()))


def parametrizations(model: nn.Module) -> Counter[str]:
    """Count by class what makes a model's weights of its parameters, as `center_filters` does."""
    held = (
        part for module in model.modules() if isinstance(module, parametrize.ParametrizationList) for part in module
    )
    return Counter(type(part).__name__ for part in held)


def norm_kinds(model: nn.Module) -> Counter[str]:
    """Count the normalization modules of a model by their class, a GroupNorm of one group apart."""
    norms = (module for module in model.modules() if isinstance(module, NORMS))
    return Counter(type(module).__name__ + (" of one group" if has_one_group(module) else "") for module in norms)


def has_one_group(module: nn.Module) -> bool:
    """Whether a module is a GroupNorm of one group, what convnets mean by LayerNorm."""
    return isinstance(module, nn.GroupNorm) and module.num_groups == 1


def loss_parameters(criterion: Any) -> list[nn.Parameter]:
    """Return the parameters that a loss has of its own to train, as a temperature; most have none."""
    return trainable_parameters(criterion) if isinstance(criterion, nn.Module) else []


def option_of(criterion: Any, name: str, default: Any = None) -> Any:
    """Return an option of a loss, which may be a class's or one that `functools.partial` gives a function."""
    if isinstance(criterion, partial):
        return criterion.keywords.get(name, default)
    return getattr(criterion, name, default)


def is_shuffled(loader: Any) -> bool | None:
    """Whether a loader shuffles, by its `shuffle` if it is one of `load_data`, else by its sampler; None if unknown."""
    if isinstance(getattr(loader, "shuffle", None), bool):
        return loader.shuffle
    sampler = sampler_of(loader)
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        return True
    return False if isinstance(sampler, SequentialSampler) else None


def sampler_of(loader: Any) -> Sampler | None:
    """Return what a DataLoader's order comes from: given a batch_sampler, the loader's own sampler is a stand-in."""
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader if batches is None else batches, "sampler", None)


def count_images(loader: Any) -> int | None:
    """Return how many images a loader's dataset has, or None where it does not say."""
    counted = getattr(loader, "labels", getattr(loader, "dataset", None))
    return len(counted) if isinstance(counted, Sized) else None


def count_drawn(loader: Any) -> int | None:
    """Return how many of its dataset's images a loader may give in an epoch, or None where it does not say."""
    images = count_images(loader)
    sampler: Any = sampler_of(loader)
    sampler = sampler.sampler if isinstance(sampler, BatchSampler) else sampler
    if images is None or not isinstance(sampler, Sized) or isinstance(sampler, DistributedSampler):
        return images
    return min(len(sampler), images)


def own_generators(*loaders: Any) -> list[torch.Generator]:
    """Return the generators of their own that DataLoaders draw their orders from, each once."""
    found: list[Any] = []
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        drawing = (loader, getattr(loader, "sampler", None), getattr(batches, "sampler", None), batches)
        found += [getattr(part, "generator", None) for part in drawing]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())


def keeping_workers(loaders: Sequence[Any]) -> list[DataLoader]:
    """Return those of the loaders whose workers stay from epoch to epoch."""
    return [loader for loader in loaders if isinstance(loader, DataLoader) and loader.persistent_workers]


@contextmanager
def keep_loaders(*loaders: Any) -> Iterator[None]:
    """Put back the epoch of loaders that have one, DataLoaders' generators and the workers they keep, come what may."""
    epochs = [(loader, loader.epoch) for loader in loaders if hasattr(loader, "set_epoch") and hasattr(loader, "epoch")]
    states = [(generator, generator.get_state()) for generator in own_generators(*loaders)]
    persistent = keeping_workers(loaders)
    workers = [loader._iterator for loader in persistent]
    for loader in persistent:  # the workers at hand wait, since they hold generators of their own; others do this work
        loader._iterator = None
    try:
        yield
    finally:
        for loader, epoch in epochs:
            loader.set_epoch(epoch)
        for generator, state in states:
            generator.set_state(state)
        for loader, kept in zip(persistent, workers, strict=True):
            ours, loader._iterator = loader._iterator, kept
            if ours is not None:
                ours._shutdown_workers()  # type: ignore[attr-defined]


def inner_schedulers(scheduler: Any) -> Iterator[LRScheduler]:
    """Yield the schedulers that SequentialLR and ChainedScheduler hold."""
    for inner in getattr(scheduler, "_schedulers", []):
        yield inner
        yield from inner_schedulers(inner)
