"""Several processes as `torchrun` starts them: the group, what is summed over it, what only the first one does."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .parts import loss_parameters, option_of


def count() -> int:
    """Return how many processes train together; 1 outside of a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0; the first one alone logs, writes and draws."""
    return dist.get_rank() if count() > 1 else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes of `torchrun` while the context lasts: nccl on CUDA, a GPU each, gloo otherwise.

    Outside of `torchrun`, or in a group that is there already, nothing is done.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    import torch.distributed.nn  # imported after the group is made, it keeps the group, whose threads outlive Python

    if torch.cuda.is_available():
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"process {local} finds {gpus} GPUs; start at most --nproc-per-node={gpus}")
        torch.cuda.set_device(local)
        # An hour, since the others wait while the first one downloads the data.
        dist.init_process_group("nccl", device_id=torch.device("cuda", local), timeout=timedelta(hours=1))
    else:
        dist.init_process_group("gloo")
    yield
    # Not after an error: this process would wait for the others, which wait for it to end.
    dist.barrier()  # wait until every process is done
    # Gloo's threads let go of their last tensors now, for which they need Python's lock. Before torch 2.8 the next call
    # held it while it waited for them, and now and then forever (https://github.com/pytorch/pytorch/pull/154976).
    time.sleep(0.1)
    dist.destroy_process_group()


def device() -> torch.device:
    """Return where the group exchanges tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def check_together(model: nn.Module, criterion: Any, place: torch.device) -> None:
    """Refuse what several processes cannot train as one would; with one process nothing is refused.

    Raises:
        ValueError: the device is not this process's own, the loss weights or ignores classes or has parameters, or the
            model has batch normalization, which torch does not synchronise on the CPU.
    """
    if count() == 1:
        return
    own = device()
    if place.type != own.type or place.index not in (None, own.index):
        advice = "leave device out" if own.type == "cuda" else f"give device={str(own)!r}"
        raise ValueError(f"this process of {count()} trains on {own}, not on {place}; {advice}")
    ignored = option_of(criterion, "ignore_index")
    if option_of(criterion, "weight") is not None or (ignored is not None and ignored >= 0):
        raise ValueError(
            "a loss that weights the classes, or ignores one, averages by weight in each process; train in one process"
        )
    if loss_parameters(criterion):
        raise ValueError("a loss with parameters would be trained by each process for itself; train in one process")
    if place.type != "cuda" and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError(
            "torch synchronises batch normalization on CUDA only, and each process would have statistics of its own "
            "here; build the model with norm='layer' or 'group', or train in one process"
        )


def shard(loader: Any) -> Any:
    """Return the loader that yields this process's part of each batch; with one process the loader itself.

    Raises:
        TypeError: the loader cannot be divided.
    """
    if count() == 1:
        return loader
    if not hasattr(loader, "shard"):
        raise TypeError(
            f"{count()} processes divide the batches of load_data's loaders, not those of a {type(loader).__name__}; "
            "pass a loader of load_data, or train in one process"
        )
    return loader.shard(rank(), count())


def is_shard(loader: Any) -> bool:
    """Whether a loader yields parts of batches, whose sums are those of all processes together."""
    return count() > 1 and getattr(loader, "parts", 1) > 1


@contextmanager
def parallel(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model whose gradients are averaged over the processes; with one process the model itself.

    All begin with the weights of the first. Batch normalization is synchronised while the context lasts.
    """
    if count() == 1:
        yield model
        return
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    for parent, name, child in replaced:
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
    try:
        yield DistributedDataParallel(model, device_ids=[device()] if device().type == "cuda" else None)
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def share_buffers(*models: nn.Module | None) -> None:
    """Give every process the buffers of the first one, whose are saved, so that all test the same model."""
    if count() == 1:
        return
    for buffer in (buffer for model in models if model is not None for buffer in model.buffers()):
        shared = buffer.contiguous()  # gloo would write into the neighbours of one with gaps
        dist.broadcast(shared, 0)
        if shared is not buffer:
            buffer.copy_(shared)


def weight(samples: int) -> Tensor:
    """Return the weight of this process's mean over so many samples in the mean over all processes' samples.

    Gradients are averaged over the processes whatever their samples: this is samples / (all samples / processes).
    """
    total = add_up(torch.full((), float(samples), device=device()))  # filled on the device, without waiting for it
    return samples * count() / total


def add_up(numbers: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, which have one shape."""
    dist.all_reduce(numbers)
    return numbers


def gather(value: Any) -> list[Any]:
    """Return every process's value, in order of rank."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def first_does(work: Callable[[], Any]) -> Any:
    """Do the work in the first process, bring its result (plain values and tensors) to all, and return it.

    Raises:
        RuntimeError: it failed; the first process raises its own error.
    """
    if count() == 1:
        return work()
    result, error = None, None
    if rank() == 0:
        try:
            result = work()
        except BaseException as raised:
            error = raised
    told = [result, None if error is None else f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(told, device=device())
    if error is not None:
        raise error
    if told[1] is not None:
        raise RuntimeError(f"the first process failed: {told[1]}")
    return told[0]


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process go through the block before the others enter it."""
    if rank():
        dist.barrier()
    yield
    if count() > 1 and not rank():
        dist.barrier()
